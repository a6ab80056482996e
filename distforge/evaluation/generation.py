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
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from distforge.activity import doing
from distforge.errors import InputError
from distforge.evaluation.greedy import Ended, Steps, write_greedily
from distforge.models.context import context_length
from distforge.rendering import Renderer
from distforge.rendering.stops import listed

_LOG = logging.getLogger(__name__)

Progress = Callable[[float, int], None]
"""Is called with (done, total) as prompts are answered; of one half written, half counts."""

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
    unwanted: Sequence[str] = (),
) -> list[Generation]:
    """Continue every prompt, greedily unless a temperature is given, in the given order of prompts.

    Args:
        model: any Hugging Face causal LM; left in the mode (training or not) it was in.
        tokenizer: needs an end-of-sequence token. All ends that it, its template and the model's
            configurations know end a continuation; ids that it lacks are never written.
        prompts: token ids, as a `Renderer` makes them; at least one each.
        max_new_tokens: most tokens written for a prompt.
        batch_size: prompts decoded at once.
        progress: called with (prompts done, prompts in all) as tokens are written.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole
            distribution, its logits divided by it.
        seed: of sampling; equal arguments write equal texts, and torch's own random state is left
            as it was.
        unwanted: texts behind which nothing is wanted: a continuation with one of them may end
            there, or later.

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
        with doing("writing answers") as count:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                rows = [prompts[i] for i in chosen]
                told = _Told(count, progress, start, len(rows), len(prompts), max_new_tokens)
                told(0, len(rows))
                with random_state(model.device, seed + start, fork=temperature > 0):
                    batch = _decode(
                        model, renderer, rows, max_new_tokens, temperature, unwanted, told
                    )
                results.update(zip(chosen, batch, strict=True))
                told(max_new_tokens, len(rows))
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(prompts))]


@dataclass(frozen=True)
class _Told:
    """Tells how many prompts are done while a batch of ``rows`` is written, ``before`` it being
    done already."""

    count: Callable[[float, float], None]
    progress: Progress | None
    before: int
    rows: int
    total: int
    longest: int

    def __call__(self, written: int, going: int) -> None:
        done = self.before + self.rows - going + going * written / max(1, self.longest)
        self.count(done, self.total)
        if self.progress is not None and written:
            self.progress(done, self.total)


class _EachStep(StoppingCriteria):
    """Tells transformers' own decoding's steps; ends nothing."""

    def __init__(self, told: Steps, width: int) -> None:
        self._told, self._width = told, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._told(input_ids.shape[1] - self._width, len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


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
def random_state(device: torch.device, seed: int, fork: bool) -> Iterator[None]:
    """Sampling from ``seed`` inside, the outer random state untouched."""
    if not fork:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def continue_ids(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    settings: GenerationConfig,
    ended: Ended | None = None,
    steps: Steps | None = None,
) -> list[list[int]]:
    """The ids written after each of ``rows``, as one batch; an end is the last.

    Args:
        rows: token ids, without padding; at least one each.
        settings: with a ``pad_token_id``. What it leaves open is not taken from the model's own
            configuration, which may penalise repetition or search with beams.
        ended, steps: see `write_greedily`; transformers' own decoding asks no ``ended``.
    """
    stops = list(listed(settings.eos_token_id))
    known = _PLAIN | (_SAMPLING if _from_all(settings) else set())
    if set(settings.to_diff_dict()) - {"transformers_version"} <= known:
        try:
            return write_greedily(
                model,
                rows,
                settings.max_new_tokens,
                stops=stops,
                pad=settings.pad_token_id,
                banned=settings.suppress_tokens or (),
                ended=ended,
                steps=steps,
                temperature=settings.temperature if settings.do_sample else 0.0,
            )
        except InputError as error:
            _LOG.info("transformers decodes, since %s", error)
    pad, width = settings.pad_token_id, max(len(ids) for ids in rows)
    # Padding stands on the left, so that every row's next token comes at the same column.
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    told = StoppingCriteriaList([_EachStep(steps, width)] if steps else [])
    with own_settings(model, settings):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            stopping_criteria=told,
        )
    return [_up_to_end(row, stops) for row in output[:, width:].tolist()]


@contextmanager
def own_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Inside, ``settings`` stand for the model's own, also for what they leave open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _up_to_end(row: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, index in enumerate(row) if index in stops), len(row))
    return row[: end + 1]


def _from_all(settings: GenerationConfig) -> bool:
    """Whether it samples from the whole distribution."""
    return bool(settings.do_sample and settings.top_k == 0 and settings.top_p == 1.0)


def generation_settings(
    renderer: Renderer, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Greedy at temperature 0, else from the whole distribution; ended by any end it knows."""
    # top_k and top_p default to a truncated distribution in transformers.
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=list(renderer.stops),
        pad_token_id=renderer.pad,
        suppress_tokens=list(renderer.absent) or None,
        **sampling,
    )


def _decode(
    model: PreTrainedModel,
    renderer: Renderer,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    unwanted: Sequence[str],
    steps: Steps,
) -> list[Generation]:
    settings = generation_settings(renderer, max_new_tokens, temperature)

    def ended(ids: list[int]) -> bool:
        text = renderer.tokenizer.decode(ids)
        return any(one in text for one in unwanted)

    generations = []
    for row in continue_ids(model, rows, settings, ended if unwanted else None, steps):
        stop = row[-1] if row and row[-1] in renderer.stops else None
        ids = row if stop is None else row[:-1]
        text = renderer.tokenizer.decode(ids, skip_special_tokens=False)
        generations.append(Generation(text, tuple(ids), stop))
    return generations
