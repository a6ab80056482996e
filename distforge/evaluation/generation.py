"""Generation in batches with a key-value cache, greedy or sampled.

Decoding is `write_greedily`, sampled from the whole distribution too; transformers' own `generate`
does what that cannot do. This module decides what goes into one batch: questions are sorted by
length, so that padding is small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.evaluation.greedy import write_greedily
from distforge.models.context import context_length
from distforge.rendering import Renderer
from distforge.rendering.stops import listed

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is called with (done, total) as prompts are answered."""

# Room beyond the longest text of the data, so that a generation is not cut for being verbose.
SPARE_TOKENS = 16
# The settings of a generation that say nothing but what `write_greedily` takes.
_PLAIN = {"max_new_tokens", "eos_token_id", "pad_token_id", "suppress_tokens", "do_sample"}
_SAMPLING = {"temperature", "top_k", "top_p"}


@dataclass(frozen=True)
class Generation:
    """A continuation: its text (thinking tokens visible), its ids without the one that ended it.

    ``stop`` is that id; None where ``max_new_tokens`` came first.
    """

    text: str
    token_ids: tuple[int, ...]
    stop: int | None

    @property
    def finished(self) -> bool:
        """Whether the model ended it."""
        return self.stop is not None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generation]:
    """Continue every prompt, greedily unless a temperature is given, in the given order of prompts.

    Args:
        model: any Hugging Face causal LM; left in the mode (training or not) it was in.
        tokenizer: needs an end-of-sequence token. All ends that it, its template and the model's
            configurations know end a continuation; ids that it lacks are never written.
        prompts: token ids, as a `Renderer` makes them; at least one each.
        max_new_tokens: most tokens written for a prompt.
        batch_size: prompts decoded at once.
        progress: called with (prompts done, prompts in all) after each batch.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole
            distribution, its logits divided by it.
        seed: of sampling; equal arguments write equal texts, and torch's own random state is left
            as it was.

    Raises:
        InputError: a prompt and ``max_new_tokens`` together exceed the model's context.
    """
    _require_room(model, prompts, max_new_tokens)
    renderer = Renderer(tokenizer, model)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Generation] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [prompts[i] for i in chosen]
            with _random_state(model.device, seed + start, fork=temperature > 0):
                batch = _decode(model, renderer, rows, max_new_tokens, temperature)
            results.update(zip(chosen, batch, strict=True))
            if progress is not None:
                progress(len(results), len(prompts))
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(prompts))]


def _require_room(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    longest = max((len(ids) for ids in prompts), default=0)
    context = context_length(model)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {context}; lower max_new_tokens or use shorter questions"
        )


@contextmanager
def _random_state(device: torch.device, seed: int, fork: bool) -> Iterator[None]:
    """Sampling from ``seed`` inside, the outer random state untouched."""
    if not fork:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def continue_ids(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], settings: GenerationConfig
) -> list[list[int]]:
    """The ids written after each of ``rows``, as one batch; filled with the padding id at the end.

    Args:
        rows: token ids, without padding; at least one each.
        settings: with a ``pad_token_id``. What it leaves open is not taken from the model's own
            configuration, which may penalise repetition or search with beams.
    """
    known = _PLAIN | (_SAMPLING if _from_all(settings) else set())
    if set(settings.to_diff_dict()) - {"transformers_version"} <= known:
        try:
            return write_greedily(
                model,
                rows,
                settings.max_new_tokens,
                stops=list(listed(settings.eos_token_id)),
                pad=settings.pad_token_id,
                banned=settings.suppress_tokens or (),
                temperature=settings.temperature if settings.do_sample else 0.0,
            )
        except InputError as error:
            _LOG.info("transformers decodes, since %s", error)
    pad, width = settings.pad_token_id, max(len(ids) for ids in rows)
    # Padding stands on the left, so that every row's next token comes at the same column.
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    own = model.generation_config
    model.generation_config = settings
    try:
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device)
        )
    finally:
        model.generation_config = own
    written: list[list[int]] = output[:, width:].tolist()
    return written


def _from_all(settings: GenerationConfig) -> bool:
    """Whether it samples from the whole distribution."""
    return bool(settings.do_sample and settings.top_k == 0 and settings.top_p == 1.0)


def _decode(
    model: PreTrainedModel,
    renderer: Renderer,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
) -> list[Generation]:
    # top_k and top_p default to a truncated distribution in transformers.
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=list(renderer.stops),
        pad_token_id=renderer.pad,
        suppress_tokens=list(renderer.absent) or None,
        **sampling,
    )
    generations = []
    for row in continue_ids(model, rows, settings):
        end = next((place for place, index in enumerate(row) if index in renderer.stops), None)
        text = renderer.tokenizer.decode(row[:end], skip_special_tokens=False)
        stop = None if end is None else row[end]
        generations.append(Generation(text, tuple(row[:end]), stop))
    return generations
