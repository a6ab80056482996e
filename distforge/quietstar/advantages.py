"""Baselines: what a reward is compared with before it steers the thoughts.

Rewards come in groups: ``thoughts`` thoughts at one place of one text share everything but chance,
so the group tells luck of the place from merit of the thought. By default no reward is divided by
its group's standard deviation: in free text all thoughts of most places gain nearly nothing, and
dividing by nearly nothing amplifies noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from distforge.errors import InputError, require_choice
from distforge.quietstar.config import Baseline

# Below this spread of a whole batch's rewards there is nothing to learn from it.
_SMALLEST_STD = 1e-6
# As TRL divides.
_GRPO_EPSILON = 1e-4


class Advantages:
    """Turns rewards into advantages; `ema` remembers, the others do not.

    Args:
        baseline: "rloo" compares with the mean of the *other* thoughts of the group: unbiased.
            "group_mean" with the mean of the group, itself included: the gradient is
            (thoughts - 1) / thoughts of the true one; "dr_grpo" is another name of it (arXiv
            2503.20783). "grpo" divides that by the group's standard deviation (arXiv 2402.03300):
            groups where chance decides little count as much as others. "reinforce_pp" is "rloo"
            divided by the standard deviation over the whole batch (REINFORCE++): the step's size
            no longer depends on the reward's scale. "ema" with a running mean of earlier batches:
            unbiased, and needs no group. "quietstar_relu" keeps only what is above the group's
            mean, as Quiet-STaR's published code does (arXiv 2403.09629): biased, for comparison.
        ema_decay: of the running mean, in [0, 1).

    Raises:
        InputError: an unknown baseline.
    """

    def __init__(self, baseline: Baseline, ema_decay: float = 0.9) -> None:
        require_choice("baseline", baseline, get_args(Baseline))
        self._baseline = baseline
        self._decay = ema_decay
        self._mean: float | None = None

    def __call__(self, rewards: Tensor) -> Tensor:
        """Advantages of ``rewards``, both (groups, thoughts), float32.

        Raises:
            InputError: a baseline that compares inside a group got groups of one.
        """
        if self._baseline == "ema":
            return self._against_running_mean(rewards)
        if rewards.shape[1] < 2:
            raise InputError(
                f"baseline {self._baseline!r} compares the thoughts of a group and got "
                f"{rewards.shape[1]} of each; take at least 2 thoughts, or the baseline 'ema'"
            )
        return _IN_GROUP[self._baseline](rewards)

    def state_dict(self) -> dict[str, float | None]:
        """What a resumed run needs; JSON."""
        return {"mean": self._mean}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Continue as the object that `state_dict` was taken from."""
        self._mean = state["mean"]

    def _against_running_mean(self, rewards: Tensor) -> Tensor:
        """The first batch, which has no history, is compared leaving each reward out."""
        now = float(rewards.mean())
        if self._mean is None:
            self._mean = now
            return rloo(rewards.reshape(1, -1)).reshape(rewards.shape)
        advantages = rewards - self._mean
        self._mean = self._decay * self._mean + (1 - self._decay) * now
        return advantages


def unlike(groups: Tensor) -> Tensor:
    """(G,) whether the rewards (G, thoughts) of a group are not all the same: elsewhere there is
    nothing to learn."""
    return (groups != groups[:, :1]).any(dim=1)


def rloo(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the others of its row; (groups, thoughts)."""
    count = rewards.shape[1]
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (count / max(count - 1, 1))


def _group_mean(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


def _grpo(rewards: Tensor) -> Tensor:
    return _group_mean(rewards) / (rewards.std(dim=1, keepdim=True) + _GRPO_EPSILON)


def _reinforce_pp(rewards: Tensor) -> Tensor:
    advantages = rloo(rewards)
    spread = advantages.pow(2).mean().sqrt()
    if spread < _SMALLEST_STD:
        return torch.zeros_like(advantages)
    return advantages / spread


def _relu(rewards: Tensor) -> Tensor:
    return _group_mean(rewards).clamp(min=0)


_IN_GROUP: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": rloo,
    "group_mean": _group_mean,
    "dr_grpo": _group_mean,
    "grpo": _grpo,
    "reinforce_pp": _reinforce_pp,
    "quietstar_relu": _relu,
}
