"""``distforge bake``: step 1."""

from __future__ import annotations

from distforge.baking import Step1Config, run_step1_baking
from distforge.cli import GOAL_MISSED
from distforge.commands.dry_run import describe_step1

__all__ = ["Step1Config", "bake"]


def bake(config: Step1Config) -> int:
    """Run step 1; 3 when it ended without converging."""
    if config.dry_run:
        print(describe_step1(config))
        return 0
    return 0 if run_step1_baking(config).converged else GOAL_MISSED
