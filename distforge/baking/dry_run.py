"""``--dry-run``: what a run would do, before it does anything."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from distforge.baking.config import Step1Config
from distforge.errors import InputError
from distforge.training.dry_run import describe_training
from distforge.training.memory import shape_of


def describe_run(config: Step1Config) -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    Raises:
        InputError: the champion's shape cannot be read.
    """
    shape = _shape(config)
    hidden, layers, width = shape["hidden_size"], shape["num_layers"], shape["intermediate_size"]
    return describe_training(
        config,
        config.engine,
        config.optimizer,
        shape,
        shape["vocab_size"] * hidden + layers * (4 * hidden**2 + 3 * hidden * width),
        batch_size=config.training.batch_size,
        micro_batches=config.training.micro_batches,
        row_tokens=config.data.max_length,
    )


def _shape(config: Step1Config) -> dict[str, int]:
    if config.champion.make:
        recipe = config.champion.recipe
        return {
            "hidden_size": recipe.architecture.hidden_size,
            "num_layers": recipe.architecture.num_layers,
            "intermediate_size": recipe.architecture.intermediate_size,
            "num_heads": recipe.architecture.num_heads,
            "vocab_size": recipe.vocab_size,
        }
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(config.champion.path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the shape of champion {config.champion.path!r} cannot be read ({error}); a dry run "
            "needs a Hugging Face directory"
        ) from error
    return shape_of(found)
