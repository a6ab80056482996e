"""A close look at a few thoughts: coherence, diversity, and how far they are from going on without.

Places are the first of each item; thoughts are sampled as in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from distforge.data.dataset import IGNORE_INDEX
from distforge.evaluation.generation import continue_ids
from distforge.theater.coherence import (
    Coherence,
    content_coherence,
    correlation_within,
    edit_distance,
    predictive_coherence,
    semantic_coherence,
    syntactic_coherence,
    thought_diversity,
    well_formedness,
)
from distforge.thinking.items import ThoughtItem, grouped, pad_targets, pad_texts
from distforge.thinking.language_model import head_at, language_model
from distforge.thinking.places import Places
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import (
    ThoughtConfig,
    Thoughts,
    contents_of,
    restricted_logits,
    sample_thoughts,
)

# Thoughts measured at once: their logits over all places are held.
_BATCH = 64


@dataclass(frozen=True)
class ThoughtMetrics:
    """Means over the thoughts looked at; ``diversity`` and ``divergence`` are in [0, 1].

    correlation: in [-1, 1], of what a thought says (its content's coherence) with what it gains,
    among the thoughts of a place; NaN where they do not differ. The verdict measures the same.
    """

    coherence: Coherence
    diversity: float
    divergence: float
    correlation: float


def measure_thoughts(
    model: nn.Module,
    reference: nn.Module,
    items: Sequence[ThoughtItem],
    tags: Tags,
    config: ThoughtConfig,
    thoughts: int,
    headings: frozenset[int],
    seed: int = 0,
) -> ThoughtMetrics:
    """Sample ``thoughts`` thoughts at the first place of each item and measure them.

    Args:
        reference: the baked model, under which fluency is measured.
        headings: ids of the tokens that begin a step of a thought.
    """
    items = [
        replace(item, positions=item.positions[:1], targets=item.targets[:1])
        for item in items
        if item.positions
    ]
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in pad_texts(items, tags.pad))
    rows, positions, _ = grouped(items, thoughts)
    generator = torch.Generator().manual_seed(seed)
    sampled = sample_thoughts(model, ids, mask, rows, positions, tags, config, generator)
    contents = contents_of(sampled)
    by_place = [contents[i : i + thoughts] for i in range(0, len(contents), thoughts)]
    thinking = [tags.open, tags.close, *headings]
    longest = max(len(group[0]) for group in by_place)
    plain = write_plainly(model, items, tags, thinking, longest)
    gains = _gains(model, items, sampled, tags)
    measured = _measure_once(model, reference, items, sampled, gains, tags, config, headings)
    return ThoughtMetrics(
        coherence=Coherence(
            semantic=_mean([one.semantic for one in measured]),
            syntactic=_mean([one.syntactic for one in measured]),
            predictive=_mean([predictive_coherence(one.gain) for one in measured]),
        ),
        diversity=_mean([thought_diversity(group) for group in by_place]),
        divergence=_mean(
            [
                edit_distance(group[0], other[: max(len(group[0]), 1)])
                for group, other in zip(by_place, plain, strict=True)
            ]
        ),
        # Equal thoughts have equal numbers: they were measured once.
        correlation=correlation_within(
            [
                ([one.content for one in group], [one.gain for one in group])
                for group in (measured[i : i + thoughts] for i in range(0, len(measured), thoughts))
            ]
        ),
    )


def _measure_once(
    model: nn.Module,
    reference: nn.Module,
    items: Sequence[ThoughtItem],
    sampled: Thoughts,
    gains: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    headings: frozenset[int],
) -> list[Measured]:
    """Of every thought; those that are equal at one place are looked at once."""
    contents = contents_of(sampled)
    kinds = list(zip(sampled.rows.tolist(), contents, sampled.closed.tolist(), strict=True))
    one = {kind: index for index, kind in enumerate(kinds)}
    looked: list[Measured] = []
    for chosen in torch.tensor(list(one.values()), device=gains.device).split(_BATCH):
        looked += measure_each(
            model, reference, items, sampled.at(chosen), gains[chosen], tags, config, headings
        )
    by_kind = dict(zip(one, looked, strict=True))
    return [by_kind[kind] for kind in kinds]


@dataclass(frozen=True)
class Measured:
    """One thought: semantic and syntactic coherence, and gain in nats a target token."""

    semantic: float
    syntactic: float
    gain: float

    @property
    def content(self) -> float:
        return content_coherence(self.semantic, self.syntactic)


def measure_each(
    model: nn.Module,
    reference: nn.Module,
    items: Sequence[ThoughtItem],
    thoughts: Thoughts,
    gains: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    headings: frozenset[int],
) -> list[Measured]:
    """Of each of the ``thoughts``, which are at the first places of these items, by their rows.

    All at once: give as many as memory has logits for. ``gains``: theirs, taken over.
    """
    chosen = [items[row] for row in thoughts.rows.tolist()]
    sequences = _Sequences(chosen, thoughts, tags, gains.device)
    fluency = sequences.fluency(reference, config)
    semantic = sequences.semantic(model).tolist()
    forms = [
        well_formedness(content, config.closing == "fixed" or closed, headings)
        for content, closed in zip(contents_of(thoughts), thoughts.closed.tolist(), strict=True)
    ]
    return [
        Measured(near, syntactic_coherence(form, fluent), gain)
        for near, form, fluent, gain in zip(semantic, forms, fluency, gains.tolist(), strict=True)
    ]


def _gains(
    model: nn.Module, items: Sequence[ThoughtItem], thoughts: Thoughts, tags: Tags
) -> Tensor:
    """(N,) nats a target token that each thought adds, against going on without one."""
    device = thoughts.rows.device
    ids, mask = (part.to(device) for part in pad_texts(items, tags.pad))
    targets = pad_targets([item.targets[0] for item in items]).to(device)
    rows, positions, _ = grouped(items, 1)
    once = Places(model, ids, mask, rows, positions, targets, tags).score_without_thoughts()
    without, tokens = once.log_probs.sum(dim=1), (targets != IGNORE_INDEX).sum(dim=1)
    found = []
    for first in range(0, len(thoughts), _BATCH):
        part = thoughts.at(slice(first, first + _BATCH))
        own = targets[part.rows]
        scores = Places(model, ids, mask, part.rows, part.positions, own, tags).score(part)
        found.append((scores.log_probs.sum(dim=1) - without[part.rows]) / tokens[part.rows])
    return torch.cat(found)


class _Sequences:
    """Text, thought and target in one row an item, for what needs every hidden state."""

    def __init__(
        self, items: Sequence[ThoughtItem], thoughts: Thoughts, tags: Tags, device: torch.device
    ) -> None:
        self._tags = tags
        rows, spans = [], []
        for item, content in zip(items, contents_of(thoughts), strict=True):
            text = item.text[: item.positions[0] + 1]
            rows.append([*text, tags.open, *content, tags.close, *item.targets[0]])
            spans.append((len(text) + 1, len(text) + 1 + len(content)))
        width = max(map(len, rows))
        self._ids = torch.tensor(
            [row + [tags.pad] * (width - len(row)) for row in rows], device=device
        )
        columns = torch.arange(width, device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
        begin, end = torch.tensor(spans, device=device).T[..., None]
        self._inside = (columns >= begin) & (columns < end)
        self._mask = (columns < lengths).long()
        tagged = (columns == begin - 1) | (columns == end)
        self._around = self._mask.bool() & ~self._inside & ~tagged

    @torch.no_grad()
    def semantic(self, model: nn.Module) -> Tensor:
        """(N,) semantic coherence."""
        lm = language_model(model)
        with head_at(lm, self._ids.new_zeros(1)):  # its logits are of no use
            states = lm(
                input_ids=self._ids,
                attention_mask=self._mask,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states[-1]
        return semantic_coherence(states.float(), self._inside, self._around)

    @torch.no_grad()
    def fluency(self, reference: nn.Module, config: ThoughtConfig) -> list[float]:
        """Geometric mean probability of each thought's tokens, as a thought's are drawn."""
        lm = language_model(reference)
        inside = self._inside[:, 1:]
        total, counts = self._ids.new_zeros(len(self._ids)).float(), inside.sum(dim=1)
        if inside.any():
            before = torch.nn.functional.pad(inside, (0, 1))  # the slots that predict the inside
            with head_at(lm, before):
                logits = lm(input_ids=self._ids, attention_mask=self._mask, use_cache=False).logits
            log_probs = restricted_logits(logits, self._tags, config).log_softmax(dim=-1)
            own = log_probs.gather(-1, self._ids[:, 1:][inside][:, None])[:, 0]
            total = total.index_add(0, inside.nonzero()[:, 0], own)
        return (total / counts.clamp(min=1)).exp().tolist()


def write_plainly(
    model: nn.Module,
    items: Sequence[ThoughtItem],
    tags: Tags,
    thinking: Sequence[int],
    length: int,
) -> list[list[int]]:
    """What the model goes on with greedily, at the first place of each item, where it may write no
    thinking token.

    Args:
        thinking: those tokens. length: most tokens that are written.
    """
    texts = [item.text[: item.positions[0] + 1] for item in items]
    settings = GenerationConfig(
        max_new_tokens=max(length, 1),
        do_sample=False,
        pad_token_id=tags.pad,
        suppress_tokens=list(thinking),
    )
    return continue_ids(language_model(model), texts, settings)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
