"""``distforge run``: the pipeline."""

from __future__ import annotations

from distforge.cli import GOAL_MISSED
from distforge.commands.dry_run import describe_step1
from distforge.pipeline import PipelineConfig, run_pipeline

__all__ = ["PipelineConfig", "run"]


def run(config: PipelineConfig) -> int:
    """Run all configured steps; 3 when one of them ended without meeting its goal."""
    if config.dry_run:
        print(describe_step1(config))
        return 0
    return 0 if run_pipeline(config) else GOAL_MISSED
