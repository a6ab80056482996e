"""Looking at a run several times without being fooled more often: alpha is spent, never renewed."""

from __future__ import annotations

import math
from typing import Any

from distforge.errors import InputError


class AlphaSpending:
    """How much of ``alpha`` each look at a run may use.

    After a fraction t of the run, ``alpha ln(1 + (e - 1) t)`` may be spent in all (Lan and DeMets
    1983, the function that is nearest to Pocock's equal looks); a look spends what was not spent
    before. The shares sum to at most ``alpha`` whatever the looks have in common (Bonferroni), so
    that all bounds of all looks hold together with probability ``1 - alpha``.

    Args:
        alpha: of the whole run, in (0, 1).
    """

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha}; expected a number between 0 and 1")
        self._alpha, self.spent, self.looks = alpha, 0.0, 0

    def spend(self, fraction: float) -> float:
        """The level of a look after ``fraction`` of the run, in (0, 1]; 0 where none is left.

        A run that was rolled back looks at the same fraction again: what is spent stays spent.
        """
        allowed = self._alpha * math.log1p((math.e - 1) * min(max(fraction, 0.0), 1.0))
        share = max(allowed - self.spent, 0.0)
        self.spent += share
        self.looks += 1
        return share

    def state_dict(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        return {"spent": self.spent, "looks": self.looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the object that `state_dict` was taken from."""
        self.spent, self.looks = float(state["spent"]), int(state["looks"])
