"""``distforge bake``: step 1."""

from __future__ import annotations

from distforge.baking import Step1Config, run_step1_baking
from distforge.cli import GOAL_MISSED
from distforge.commands.dry_run import describe_step1

__all__ = ["Step1Config", "bake"]

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "bake": (
        "name",
        "champion.path",
        "champion.make",
        "data.path",
        "data.num_examples",
        "mode",
        "training.max_steps",
        "training.epochs",
        "training.batch_size",
        "training.micro_batches",
        "optimizer.muon_grokfast.muon_lr",
        "optimizer.muon_grokfast.adamw_lr",
        "engine.dtype",
        "engine.zero_stage",
        "evaluation.every_steps",
        "checkpoint_every",
        "existing",
        "resume",
        "telemetry.wandb_mode",
        "dry_run",
    )
}


def bake(config: Step1Config) -> int:
    """Run step 1; 3 when it ended without converging."""
    if config.dry_run:
        print(describe_step1(config))
        return 0
    return 0 if run_step1_baking(config).converged else GOAL_MISSED
