"""``distforge bake-prompt``: prompts into a model's weights."""

from __future__ import annotations

from distforge.baking.prompt.prompt_run import run_prompt_baking
from distforge.baking.prompt.prompt_run_config import BakePromptConfig
from distforge.cli import GOAL_MISSED
from distforge.training.distributed import entered_world

__all__ = ["BakePromptConfig", "bake_prompt"]

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "bake-prompt": (
        "model",
        "prompt",
        "strength",
        "graded",
        "rounds",
        "adapter",
        "check",
        "data.path",
        "questions",
        "name",
        "existing",
        "baking.method",
        "baking.lora.rank",
        "baking.questions",
        "baking.num_questions",
        "baking.max_response_tokens",
        "baking.on_policy",
        "baking.beta",
        "baking.training.max_steps",
        "baking.training.batch_size",
    )
}


def bake_prompt(config: BakePromptConfig) -> int:
    """Run it; 3 when a prompt's KL did not come down."""
    with entered_world() as world:
        return 0 if run_prompt_baking(config, world).followed else GOAL_MISSED
