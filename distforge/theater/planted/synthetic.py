"""Evidence drawn at random around a known truth, without a model: for the level of the bounds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distforge.theater.config import ALWAYS_WRITTEN
from distforge.theater.evidence import PlaceEvidence


def synthetic_evidence(
    count: int,
    own: float,
    controls: Mapping[str, float],
    rng: np.random.Generator,
    *,
    divergence: float = 0.8,
    correlation: float = 0.6,
    thoughts: int = 8,
) -> list[PlaceEvidence]:
    """``count`` independent places.

    Args:
        own, controls: true accuracies, in [0, 1]; all answers are drawn independently.
        divergence: true mean of both divergences, in (0, 1).
        correlation: of normal coherence and gain, in [-1, 1]; at 0 the true measure is 0.
        thoughts: that are compared at a place; with 0 there is no correlation.
    """
    hits = rng.random((count, ALWAYS_WRITTEN)) < own
    right = {name: rng.random(count) < share for name, share in controls.items()}
    spread = [rng.beta(4 * divergence, 4 * (1 - divergence), count) for _ in range(2)]
    one = rng.normal(size=(count, thoughts))
    noise = rng.normal(size=(count, thoughts))
    other = correlation * one + (1 - correlation**2) ** 0.5 * noise
    return [
        PlaceEvidence(
            source=str(place),
            own=float(hits[place].mean()),
            controls={name: float(found[place]) for name, found in right.items()},
            thoughts=thoughts,
            edit=float(spread[0][place]),
            floor=0.1,
            tokens=[(1.0, float(spread[1][place]))],
            coherence=one[place].tolist(),
            gain=other[place].tolist(),
        )
        for place in range(count)
    ]
