"""Free text: what it costs a model with thoughts and without, and what another saves of that.

Like is compared with like: with thoughts on both sides, or without on both. A trained model with
thoughts held against the baked one without would count as gained what thoughts were worth before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distforge.evaluation.intervals import Interval, bootstrap_mean
from distforge.theater.conditions import Condition, ProbeResult

FEWEST_SOURCES = 20
"""Documents below which an interval over them is none: a few resampled means cover too little, and
those of one document are all the same."""

SMALLEST_GAIN = 0.001
"""Bits a token: what lies below is rounding, which has a sign and, over many places, an interval
beside 0."""


def interval_over(values: np.ndarray, sources: Sequence[str]) -> Interval:
    """The mean of values by place, with a 95% interval over the documents that they are of.

    The bounds are NaN where the documents are fewer than `FEWEST_SOURCES`.
    """
    if len(set(sources)) < FEWEST_SOURCES:
        return Interval(float(np.mean(values)), math.nan, math.nan)
    return bootstrap_mean(values, clusters=sources)


def bits_saved(before: ProbeResult, after: ProbeResult, sources: Sequence[str]) -> Interval:
    """Bits a token that ``after`` needs less than ``before``, at the same places.

    Args:
        sources: of each place, the document that it is in.
    """
    return interval_over(bits_a_token(before) - bits_a_token(after), sources)


def bits_a_token(result: ProbeResult) -> np.ndarray:
    """(N,) float64, of each place's target."""
    bits: np.ndarray = (result.bits.double() / result.tokens).numpy()
    return bits


@dataclass(frozen=True)
class Savings:
    """What training saved, in bits a token.

    with_thoughts: with own thoughts before and after. without: without thoughts before and after,
    which is what plain training taught on the way. by_thoughts: the first less the second.
    note: why there is no interval, or "".
    """

    with_thoughts: Interval
    without: Interval
    by_thoughts: Interval
    note: str = ""

    @property
    def improved(self) -> bool:
        """Whether the model predicts better with thoughts, and not only for what it was taught
        beside them: two steps of plain training save bits as well."""
        return min(self.with_thoughts.low, self.by_thoughts.low) > SMALLEST_GAIN


def savings(
    before: Mapping[Condition, ProbeResult],
    after: Mapping[Condition, ProbeResult],
    sources: Sequence[str],
) -> Savings:
    """Of two models under the conditions "own" and "none"."""
    count = len(set(sources))
    note = (
        f"{count} held-out documents carry no interval, so no gain can be shown: give at least "
        f"{FEWEST_SOURCES}"
    )
    own = bits_a_token(before["own"]) - bits_a_token(after["own"])
    none = bits_a_token(before["none"]) - bits_a_token(after["none"])
    return Savings(
        interval_over(own, sources),
        interval_over(none, sources),
        interval_over(own - none, sources),
        note if count < FEWEST_SOURCES else "",
    )
