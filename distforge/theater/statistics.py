"""Bounds of the verdict's measures: paired bootstrap over documents, and Holm over the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distforge.handoff.verdict import TESTS

Floats = npt.NDArray[np.float64]

FEWEST_SOURCES = 30
"""Independent questions or documents on fewer of which resamples differ too little: a bootstrap of
a handful is too sure of itself."""

# Resamples at once; what is held is so many rows of counts, one a document.
_CHUNK = 500


@dataclass(frozen=True)
class Sums:
    """A mean taken apart by independent source: ``totals`` and ``weights``, (S,) each; the mean is
    ``totals.sum() / weights.sum()``, NaN where nothing has weight."""

    totals: Floats
    weights: Floats

    @property
    def mean(self) -> float:
        """Of all."""
        return float(_divide(self.totals.sum(), self.weights.sum()))

    @property
    def sources(self) -> int:
        """How many say something."""
        return int((self.weights > 0).sum())


def resampled_means(parts: Mapping[str, Sums], resamples: int, seed: int) -> dict[str, Floats]:
    """(resamples,) means of each part; all parts see the same draws of the sources (paired).

    NaN, which bounds nothing, where fewer than `FEWEST_SOURCES` say something.

    Args:
        parts: over the same S sources.
    """
    rng = np.random.default_rng(seed)
    sources = len(next(iter(parts.values())).totals)
    stacked = np.stack([column for p in parts.values() for column in (p.totals, p.weights)], axis=1)
    found = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, sources, (rows, sources)) + sources * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * sources).reshape(rows, sources)
        found.append(counts @ stacked)
    sums = np.concatenate(found)
    return {
        name: _divide(sums[:, 2 * column], sums[:, 2 * column + 1])
        if part.sources >= FEWEST_SOURCES
        else np.full(resamples, np.nan)
        for column, (name, part) in enumerate(parts.items())
    }


def holm_bounds(
    replicates: Mapping[str, Floats], thresholds: Mapping[str, float], alpha: float
) -> dict[str, tuple[float, float]]:
    """Lower and upper bound of every measure, such that comparing them with the thresholds is
    Holm's procedure over the tests, ``alpha / 2`` in each direction.

    A test of two measures clears where both do (no correction), and is below where one is, for
    which its measures share its level. A resample in which a measure cannot be computed counts
    against it in both directions.

    So it is with a measure that is the least of several differences: it clears where all do, and is
    below where one is, for which they share its level. Resamples of the least itself would lie
    lower than it does, the lower the more of them are alike.

    Args:
        replicates: of each measure of `TESTS`, see `resampled_means`: (B,), or (K, B) of the K
            differences of which it is the least.
        thresholds: by measure.
        alpha: two-sided, over all tests; where it is 0, no bound is finite.
    """
    rows = {m: np.atleast_2d(values) for m, values in replicates.items()}
    above = {m: max(_share(v <= thresholds[m], v) for v in rows[m]) for m in rows}
    under = {m: len(rows[m]) * min(_share(v >= thresholds[m], v) for v in rows[m]) for m in rows}
    clearing = _levels({t: max(above[m] for m in ms) for t, ms in TESTS.items()}, alpha / 2)
    failing = _levels(
        {t: len(ms) * min(under[m] for m in ms) for t, ms in TESTS.items()}, alpha / 2
    )
    bounds = {}
    for test, measures in TESTS.items():
        for measure in measures:
            level = failing[test] / len(measures) / len(rows[measure])
            low = min(_quantile(v, clearing[test], -math.inf) for v in rows[measure])
            high = min(-_quantile(-v, level, -math.inf) for v in rows[measure])
            bounds[measure] = (low, high)
    return bounds


def permuted_means(places: list[tuple[Floats, Floats]], permutations: int, seed: int) -> Floats:
    """(permutations,) averages by Fisher's z when each place's pairing is drawn anew: what the mean
    rank correlation is where coherence has nothing to do with gain.

    Args:
        places: centred ranks of two numbers of each thought of a place, see `fisher_z`.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(permutations)
    for one, other in places:
        order = rng.random((permutations, len(one))).argsort(axis=1)
        total += fisher_z((one[order] * other).sum(axis=1) / _norm(one, other))
    return total / max(len(places), 1)


def fisher_z(rho: Floats | float) -> Floats:
    """``atanh``; a perfect order of few thoughts would count without end, so it counts as 0.99."""
    return np.arctanh(np.clip(rho, -0.99, 0.99))


def _norm(one: Floats, other: Floats) -> float:
    return math.sqrt(float((one**2).sum() * (other**2).sum()))


def _levels(p_values: Mapping[str, float], level: float) -> dict[str, float]:
    """Holm's level of each test: level / tests for the surest, then level / (tests - 1), …; after
    one that fails, the rest are held to the level at which it failed."""
    order = sorted(p_values, key=lambda test: p_values[test])
    levels, failed = {}, 0.0
    for rank, test in enumerate(order):
        levels[test] = failed or level / (len(order) - rank)
        if not failed and p_values[test] > levels[test]:
            failed = levels[test]
    return levels


def _share(hits: npt.NDArray[np.bool_], values: Floats) -> float:
    """Of the resamples, where the measure is on the wrong side or unknown; never quite 0."""
    return (1 + int((hits | np.isnan(values)).sum())) / (1 + len(values))


def _quantile(values: Floats, level: float, unknown: float) -> float:
    """The value below which, counting unknown ones as lowest, less than ``level`` of all lie."""
    known = np.where(np.isnan(values), unknown, values)
    rank = math.floor(level * (len(values) + 1)) - 1
    return float(np.partition(known, rank)[rank]) if rank >= 0 else -math.inf


def _divide(totals: Floats, weights: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weights > 0, totals / weights, np.nan)
