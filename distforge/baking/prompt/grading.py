"""Strengths by their effect: how much of a bake makes how many answers follow the prompt.

Greedy answers turn to the prompt's layout within a narrow range of scales, at another place for
every prompt. So equal steps of scale are not equal steps of what a user sees. Here that range is
found, and strengths are counted in answers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from distforge.errors import InputError
from distforge.reports.prompt_summary import AdherenceByStrength

# Scales are told apart to this; a jump between nearer ones is a jump of the model's.
_FINEST = 1 / 256


class Grades(AdherenceByStrength):
    """Adherence of one bake by strength, and the strength that turns a share of the answers."""

    def strength(self, share: float) -> float:
        """The strength at which ``share`` of the answers that the whole bake turns have turned.

        Interpolated between the measured ones; 0 is the model as it was, 1 the whole bake.

        Raises:
            InputError: a share outside [0, 1], or a bake that turns no answer.
        """
        if not 0 <= share <= 1:
            raise InputError(f"the share of answers is {share}; expected a number in [0, 1]")
        if share in (0, 1):
            return float(share)
        none, whole = self.adherence[0], self.adherence[-1]
        if not whole > none:
            raise InputError(
                f"adherence is {none:.1%} without the bake and {whole:.1%} with it, so no strength "
                "is half-way; give the strength as a scale"
            )
        # A noisy dip must not make two strengths of one share.
        risen = np.maximum.accumulate(self.adherence)
        wanted = none + share * (whole - none)
        after = int(np.searchsorted(risen, wanted))
        low, high = risen[after - 1], risen[after]
        part = (wanted - low) / (high - low)
        left, right = self.strengths[after - 1 : after + 1]
        return float(left + part * (right - left))


def grade(
    adherence: Callable[[float], float], questions: int, resolution: float, limit: int
) -> Grades:
    """Measure adherence where it changes: the widest jump is halved until none is left.

    Args:
        adherence: of the bake at a strength in [0, 1]; asked ``limit`` times at most.
        questions: that stand behind it.
        resolution: smallest jump that is looked into, > 0.
    """
    found = {strength: adherence(strength) for strength in (0.0, 1.0)}
    while len(found) < limit:
        places = sorted(found)
        jumps = [
            (abs(found[right] - found[left]), left, right)
            for left, right in pairwise(places)
            if right - left > _FINEST
        ]
        widest, left, right = max(jumps, default=(0.0, 0.0, 0.0))
        if widest <= resolution:
            break
        middle = (left + right) / 2
        found[middle] = adherence(middle)
    strengths = tuple(sorted(found))
    return Grades(strengths, tuple(found[s] for s in strengths), questions)
