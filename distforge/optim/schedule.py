"""Learning-rate schedules as a pure function of the step, applied to any torch optimizer.

A function instead of a stateful scheduler: a resumed run computes the factor of its step, and
nothing has to be saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from distforge.errors import InputError, require_choice, require_in

ScheduleKind = Literal["cosine", "constant", "linear"]


@dataclass(frozen=True)
class ScheduleConfig:
    """Shape of the learning rate over a run.

    kind: "cosine" or "linear" decay from 1 to ``final_fraction``; "constant" stays at 1.
    warmup_steps: linear ramp over this many first steps, >= 0.
    final_fraction: factor at the end of the run, [0, 1]; "constant" does not read it.
    """

    kind: ScheduleKind = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(ScheduleKind))
        require_in("[0, inf)", warmup_steps=self.warmup_steps)
        require_in("[0, 1]", final_fraction=self.final_fraction)


def lr_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor in (0, 1] by which the initial learning rates are multiplied for one step.

    Args:
        step: steps taken so far, so 0 for the first one.
        total_steps: length of the run, >= 1.

    The ramp is (step + 1) / warmup_steps, so that the first step already moves; the decay starts
    where the ramp ends and reaches ``final_fraction`` at ``step == total_steps``, and stays there.
    Raises InputError for a negative step or an empty run.
    """
    require_in("[0, inf)", step=step)
    require_in("[1, inf)", total_steps=total_steps)
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    linear = 1.0 - progress
    remaining = linear if config.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final_fraction + (1.0 - config.final_fraction) * remaining


def apply_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets ``lr = initial_lr * factor`` in every parameter group.

    Raises InputError when a group has no ``initial_lr`` (those of ``build_optimizer`` have).
    """
    for index, group in enumerate(optimizer.param_groups):
        if "initial_lr" not in group:
            raise InputError(
                f"parameter group {index} has no initial_lr to scale: "
                "make the optimizer with build_optimizer, or set initial_lr in every group."
            )
        group["lr"] = group["initial_lr"] * factor
