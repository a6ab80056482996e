"""How coherent thoughts are, and how different: formulas on tokens and tensors, mostly in [0, 1].

None of them is ever part of a reward: what is rewarded stops being a measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Of the composite: semantic, syntactic, predictive (the specification's).
WEIGHTS = (0.4, 0.3, 0.3)
_NGRAM = 4
_LARGEST_RHO = 0.99


@dataclass(frozen=True)
class Coherence:
    """Of one thought, or means over several; in [0, 1]."""

    semantic: float
    syntactic: float
    predictive: float

    @property
    def composite(self) -> float:
        """``0.4 semantic + 0.3 syntactic + 0.3 predictive``."""
        parts = (self.semantic, self.syntactic, self.predictive)
        return sum(weight * part for weight, part in zip(WEIGHTS, parts, strict=True))


def semantic_coherence(states: Tensor, thought: Tensor, around: Tensor) -> Tensor:
    """``(1 + cos(mean of the thought's states, mean of the others' states)) / 2``, (N,).

    Args:
        states: (N, L, d) hidden states of the last layer.
        thought: (N, L) boolean, the tokens of the thought.
        around: (N, L) boolean, the tokens of the text before it and of what follows it.

    A thought without a token scores 0.5, as a state at right angles would.
    """
    cosine = torch.nn.functional.cosine_similarity(
        _pooled(states, thought), _pooled(states, around), dim=-1
    )
    return (1 + cosine) / 2


def well_formedness(content: Sequence[int], closed: bool, headings: frozenset[int]) -> float:
    """The mean of three checks, each 0 to 1.

    Whether the thought closed itself; whether its steps say something: the share of its headings
    (``<step>``, ``<reason>``, …) that are not followed by another heading or the end, 1 without
    headings; and whether it is free of degenerate repetition: distinct 4-grams over 4-grams.

    Args:
        content: the thought's token ids, without tags.
        closed: whether ``</think>`` was written (or, where it always is, appended on time).
        headings: ids of the thinking tokens that begin a step.
    """
    starts = [index for index, token in enumerate(content) if token in headings]
    said = [i + 1 < len(content) and content[i + 1] not in headings for i in starts]
    steps = sum(said) / len(said) if said else 1.0
    grams = [tuple(content[i : i + _NGRAM]) for i in range(len(content) - _NGRAM + 1)]
    varied = len(set(grams)) / len(grams) if grams else 1.0
    return (float(closed) + steps + varied) / 3


def syntactic_coherence(form: float, fluency: float) -> float:
    """``(form + fluency) / 2``; fluency is the geometric mean probability of the thought's tokens
    under the baked model, ``exp(mean log p)``."""
    return (form + fluency) / 2


def content_coherence(semantic: float, syntactic: float) -> float:
    """``(4 semantic + 3 syntactic) / 7``: the composite without its predictive part, which the gain
    is in by construction."""
    return (WEIGHTS[0] * semantic + WEIGHTS[1] * syntactic) / (WEIGHTS[0] + WEIGHTS[1])


def predictive_coherence(gain: float) -> float:
    """``1 / (1 + exp(-gain))`` of the gain in nats a target token: 0.5 where the thought changes
    nothing."""
    return float(torch.sigmoid(torch.tensor(gain, dtype=torch.float64)))


def thought_diversity(thoughts: Sequence[Sequence[int]]) -> float:
    """One less the mean overlap of two thoughts at the same place, over all pairs.

    Overlap is Jaccard's, of the sets of bigrams: shared over all. 0 for equal thoughts, 1 where no
    two share a bigram; NaN for fewer than two thoughts.
    """
    sets = [_bigrams(thought) for thought in thoughts]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    if not pairs:
        return float("nan")
    overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs]
    return 1 - sum(overlaps) / len(overlaps)


def correlation_within(
    places: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> float:
    """Spearman's rank correlation at each place, averaged by Fisher's z; NaN where there is none.

    Args:
        places: two numbers of each thought (its coherence, its gain), place by place. Within a
            place, what makes a place easy cannot pass for a thought's merit. A place with fewer
            than three thoughts, or where one of the two never varies, says nothing.
    """
    found = [spearman(one, other) for one, other in places if len(one) > 2]
    known = [rho for rho in found if not math.isnan(rho)]
    if not known:
        return math.nan
    # A perfect order of few thoughts would count without end.
    z = [math.atanh(max(-_LARGEST_RHO, min(_LARGEST_RHO, rho))) for rho in known]
    return math.tanh(sum(z) / len(z))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; NaN where one is constant."""
    both = np.array([ranks(one), ranks(other)])
    centred = both - both.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    if not spread.all():
        return math.nan
    return float((centred[0] * centred[1]).sum() / math.sqrt(spread[0] * spread[1]))


def ranks(values: Sequence[float]) -> np.ndarray:
    """From 1, ties at their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def edit_distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Levenshtein's distance over the longer length, in [0, 1]; 0 for two empty sequences."""
    if not one and not other:
        return 0.0
    row = list(range(len(other) + 1))
    for i, token in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, against in enumerate(other, start=1):
            replaced = diagonal + (token != against)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1] / max(len(one), len(other))


def _pooled(states: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _bigrams(thought: Sequence[int]) -> set[tuple[int, ...]]:
    """A thought of one token is its own only gram."""
    if len(thought) < 2:
        return {tuple(thought)} if thought else set()
    return {tuple(thought[i : i + 2]) for i in range(len(thought) - 1)}
