"""Intervals for what was measured on a sample of items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from distforge.errors import InputError

# Resampled means computed at once.
_BLOCK = 500


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with the stated confidence."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean; of paired differences, it is a paired test.

    Args:
        values: one number an item, at least one.
        clusters: what each item belongs to (a document); whole clusters are drawn again, since
            items of one are not independent. By default every item is its own.
        confidence: of the interval, in (0, 1).
        resamples: drawn samples.
        seed: of the drawing; equal arguments give equal intervals.

    Raises:
        InputError: no values, or clusters of another length.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or (clusters is not None and len(clusters) != len(data)):
        raise InputError(
            f"there are {len(data)} values and "
            f"{len(data) if clusters is None else len(clusters)} cluster names; expected at least "
            "one value, and a name for each"
        )
    sums, counts = _by_cluster(data, clusters)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        drawn = generator.integers(len(sums), size=(rows, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high))


def proportion(hits: int, count: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a fraction; unlike the bootstrap's, it is open at 0 and at ``count``.

    Args:
        hits: 0 to ``count``. count: at least 1, of independent items.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    if not 0 <= hits <= count or count < 1:
        raise InputError(f"there are {hits} hits of {count}; expected at least one item")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction, shrink = hits / count, 1 + z**2 / count
    centre = (fraction + z**2 / (2 * count)) / shrink
    half = z / shrink * (fraction * (1 - fraction) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval(fraction, max(0.0, centre - half), min(1.0, centre + half))


def exact_proportion(hits: int, count: int, *, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of a fraction: it holds the true one at least as often as it
    says, also where ``hits`` is 0 or ``count``.

    Args:
        hits: 0 to ``count``. count: at least 1, of independent items.

    Source: Clopper and Pearson 1934, doi 10.1093/biomet/26.4.404.
    """
    if not 0 <= hits <= count or count < 1:
        raise InputError(f"there are {hits} hits of {count}; expected at least one item")
    aside = (1 - confidence) / 2
    low = _bisect(lambda share: 1 - _at_most(hits - 1, count, share) < aside) if hits else 0.0
    high = _bisect(lambda share: _at_most(hits, count, share) > aside) if hits < count else 1.0
    return Interval(hits / count, low, high)


def _at_most(hits: int, count: int, share: float) -> float:
    """Of the binomial: so many hits or fewer."""
    return math.fsum(
        math.comb(count, n) * share**n * (1 - share) ** (count - n) for n in range(hits + 1)
    )


def _bisect(holds: Callable[[float], bool]) -> float:
    """Where ``holds``, true of small fractions, ends to be."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def _by_cluster(
    data: np.ndarray, clusters: Sequence[object] | None
) -> tuple[np.ndarray, np.ndarray]:
    if clusters is None:
        return data, np.ones_like(data)
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    return (
        np.bincount(index, weights=data),
        np.bincount(index).astype(np.float64),
    )
