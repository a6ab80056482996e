"""One answer, token by token, for whoever reads it while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from distforge.errors import InputError
from distforge.evaluation.generation import (
    Generation,
    generation_settings,
    own_settings,
    random_state,
)
from distforge.models.context import context_length
from distforge.rendering import Renderer


@torch.no_grad()
def stream_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    max_new_tokens: int,
    written: Callable[[str], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generation:
    """Continue ``prompt`` by what `generate` would write, telling of it on the way.

    Args:
        model: in evaluation mode.
        prompt: token ids, as a `Renderer` makes them; at least one.
        max_new_tokens: most tokens to write; fewer where the model's context ends before.
        written: is called with the whole text so far, whenever it has grown.
        temperature, seed: as for `generate`.

    Raises:
        InputError: the prompt fills the model's context.
    """
    context = context_length(model)
    room = max_new_tokens if context is None else min(max_new_tokens, context - len(prompt))
    if room < 1:
        raise InputError(
            f"the question takes {len(prompt)} tokens and the model reads {context}; shorten it"
        )
    renderer = Renderer(tokenizer, model)
    ids = torch.tensor([list(prompt)], device=model.device)
    reader = _Reader(tokenizer, renderer.stops, written)
    settings = generation_settings(renderer, room, temperature)
    with own_settings(model, settings), random_state(model.device, seed, fork=temperature > 0):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=reader)
    return Generation(tokenizer.decode(reader.ids), tuple(reader.ids), reader.stop)


class _Reader(BaseStreamer):
    """Collects the tokens, and tells of them as soon as they are whole characters."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[int],
        written: Callable[[str], None],
    ) -> None:
        self.ids: list[int] = []
        self.stop: int | None = None
        self._tokenizer, self._stops, self._written = tokenizer, stops, written
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then each new token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for index in value.flatten().tolist():
            if index in self._stops:
                self.stop = index
                return
            self.ids.append(index)
        text = self._tokenizer.decode(self.ids)
        if not text.endswith("\ufffd"):  # the first bytes of a character
            self._written(text)

    def end(self) -> None:
        """Nothing is left over."""
