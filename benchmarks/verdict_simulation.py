"""The verdict's bounds on a threshold: how often they decide where nothing is to be decided."""

from __future__ import annotations

from typing import Any

import numpy as np

from distforge.handoff.verdict import Measure
from distforge.theater.config import TheaterConfig
from distforge.theater.measures import reach_verdict
from distforge.theater.planted.synthetic import synthetic_evidence
from distforge.theater.spending import AlphaSpending

ALPHA, LOOKS, ITEMS = 0.05, 10, 300
_CHANCE = 0.2


def simulate(runs: int) -> dict[str, Any]:
    """Shares of ``runs`` models exactly on the threshold of the ablation, which should be at most
    ``ALPHA / 2`` each way for one look, and `ALPHA` for any of ten looks."""
    found: dict[str, Any] = {"runs": runs, "items": ITEMS, "alpha": ALPHA, "looks": LOOKS}
    for equal in (1, 6):
        controls = {str(number): _CHANCE for number in range(equal)}
        clears = below = 0
        for run in range(runs):
            ablation = _look(controls, ALPHA, run, 0)
            clears, below = clears + ablation.clears, below + ablation.is_below
        found[f"{equal} equal controls"] = {"clears": clears / runs, "below": below / runs}
    wrong = sum(_decides({"direct": _CHANCE}, run) for run in range(runs))
    return found | {"any look decides": wrong / runs}


def _decides(controls: dict[str, float], run: int) -> bool:
    spending = AlphaSpending(ALPHA)
    shares = [spending.spend((look + 1) / LOOKS) for look in range(LOOKS)]
    looks = (_look(controls, share, run, look) for look, share in enumerate(shares))
    return any(ablation.clears or ablation.is_below for ablation in looks)


def _look(controls: dict[str, float], alpha: float, run: int, look: int) -> Measure:
    config = TheaterConfig(bootstrap=2000, seed=run)
    own = _CHANCE + config.ablation
    rng = np.random.default_rng([run, look])
    evidence = synthetic_evidence(ITEMS, own, controls, rng, thoughts=0)
    return reach_verdict(evidence, config, alpha).measures["ablation"]
