"""How large a bake is where its configuration leaves that open: the one place that decides it.

A GPU, or a model of a few million parameters, has time for a thousand questions. On a CPU a model
of a hundred million reads a few hundred tokens a second: a bake there is the least that brings the
prompt in, so that it takes minutes and not a day.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.prompt_config import PromptBakingConfig, Questions
from distforge.data import Example, of_split
from distforge.optim import OptimizerConfig
from distforge.rendering import Renderer
from distforge.training.distributed import World

# A model with fewer parameters is one of our own making, which knows the built-in tasks alone.
_LARGE = 10_000_000


@dataclass(frozen=True)
class _Size:
    """What a bake is given; the fields of the same names say what each is."""

    num_questions: int
    heldout_questions: int
    max_response_tokens: int
    evaluations: int
    max_steps: int
    batch_size: int
    micro_batches: int


_PLENTY = _Size(1024, 64, 160, evaluations=8, max_steps=200, batch_size=32, micro_batches=2)
# One pass over the questions; a second one takes as long again for a tenth less KL.
_FRUGAL = _Size(256, 32, 48, evaluations=2, max_steps=32, batch_size=8, micro_batches=1)
# AdamW's rate for an adapter. On a model of 135M parameters 2e-3 overshoots: a step undoes what the
# ones before it taught of their questions, so that a second pass raises the KL (64 questions, three
# passes: 0.323 to 0.105 nats a token, at 5e-4 to 0.069).
_RATE, _RATE_OF_LARGE = 2e-3, 5e-4


def sized(
    config: PromptBakingConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    examples: Sequence[Example] | None,
) -> PromptBakingConfig:
    """``config`` with nothing left open; whatever it says is kept.

    Args:
        model, tokenizer: that is baked into.
        world: its device, and how many ranks share a step.
        examples: the questions that were given, of both splits, if any were.

    Raises:
        InputError: what it says does not go together with what was left open.
    """
    is_large = _parameters(model) >= _LARGE
    is_slow = is_large and world.device.type == "cpu"
    size = _FRUGAL if is_slow else _PLENTY
    questions: Questions = "dataset"
    if is_large and examples is None and Renderer(tokenizer).has_template:
        questions = "everyday" if is_slow else "self"
    training = config.training
    there = size.batch_size if examples is None else len(of_split(examples, "train"))
    batch_size = training.batch_size or max(1, min(size.batch_size, there))
    portions = world.size if size.micro_batches % world.size else size.micro_batches
    steps = training.max_steps or (0 if training.epochs else size.max_steps)
    # No more questions than there are places for.
    number = min(size.num_questions, steps * batch_size or size.num_questions)
    return dataclasses.replace(
        config,
        questions=questions if config.questions == "auto" else config.questions,
        num_questions=config.num_questions or max(number, batch_size),
        heldout_questions=config.heldout_questions or size.heldout_questions,
        max_response_tokens=config.max_response_tokens or size.max_response_tokens,
        evaluate_every=config.evaluate_every or max(1, (steps or 200) // size.evaluations),
        optimizer=_with_rate(config.optimizer, _RATE_OF_LARGE if is_large else _RATE),
        training=dataclasses.replace(
            training,
            max_steps=steps,
            batch_size=batch_size,
            micro_batches=training.micro_batches or min(portions, batch_size),
        ),
    )


def _with_rate(config: OptimizerConfig, rate: float) -> OptimizerConfig:
    if config.adamw.lr:
        return config
    return dataclasses.replace(config, adamw=dataclasses.replace(config.adamw, lr=rate))


def described(config: PromptBakingConfig, model: PreTrainedModel, world: World) -> str:
    """How large a `sized` bake is, in a sentence for the console."""
    whose = {"dataset": "of the data", "everyday": "people ask", "self": "the model writes"}
    training = config.training
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    return (
        f"for {_parameters(model) / 1e6:,.0f}M parameters on {world.device.type.upper()}: "
        f"{config.num_questions:,} questions {whose[config.questions]} and "
        f"{config.heldout_questions} held out, answers of {config.max_response_tokens} tokens at "
        f"most, {length} of {training.batch_size} (baking.num_questions and the like change it)"
    )


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
