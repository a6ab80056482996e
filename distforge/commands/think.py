"""``distforge think``: step 2."""

from __future__ import annotations

from distforge.cli import GOAL_MISSED
from distforge.commands.dry_run import describe_step2
from distforge.quietstar import Step2Config, run_step2_rl

__all__ = ["Step2Config", "think"]

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "think": (
        "name",
        "baked",
        "data.path",
        "task",
        "text.path",
        "reward.function",
        "reward.kind",
        "episodes.episodes",
        "episodes.batch_size",
        "episodes.thoughts",
        "thought.max_tokens",
        "thought.closing",
        "optimizer.muon_grokfast.muon_lr",
        "optimizer.muon_grokfast.kl_coefficient",
        "rollouts.num_actors",
        "probe.every_steps",
        "checkpoint_every",
        "existing",
        "resume",
        "dry_run",
    )
}


def think(config: Step2Config) -> int:
    """Run step 2; 3 when the model is not better than the baked one, or its verdict is not PASS."""
    if config.dry_run:
        print(describe_step2(config))
        return 0
    return 0 if run_step2_rl(config).is_goal_reached else GOAL_MISSED
