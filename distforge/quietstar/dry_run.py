"""``--dry-run`` of step 2: what a run would do, before it does anything."""

from __future__ import annotations

from distforge.quietstar.inputs import load_inputs
from distforge.quietstar.step2_config import Step2Config
from distforge.training.dry_run import describe_training
from distforge.training.memory import shape_of

# Tokens of an answer, about.
_LONGEST_TARGET = 8


def describe_run(config: Step2Config) -> str:
    """What `describe_training` says, and how many items and steps there are.

    Raises:
        InputError: the baked model or the data cannot be used.
    """
    inputs, episodes = load_inputs(config), config.episodes
    # A row is a text with all its thoughts.
    longest = max(len(item.text) for item in inputs.items)
    row = longest + episodes.thoughts * (config.thought.max_tokens + 2 + _LONGEST_TARGET)
    return describe_training(
        config,
        config.engine,
        config.optimizer,
        shape_of(inputs.baked.model.config),
        inputs.baked.model.num_parameters(),
        batch_size=episodes.batch_size,
        micro_batches=episodes.micro_batches,
        row_tokens=row,
        notes=(
            f"{len(inputs.items)} items, {len(inputs.heldout)} held out; "
            f"{episodes.loop.max_steps} steps of {episodes.batch_size} episodes, "
            f"{episodes.thoughts} thoughts each, by {config.rollouts.num_actors} rollout actors; "
            "the frozen baked model is not in the estimate"
        ),
    )
