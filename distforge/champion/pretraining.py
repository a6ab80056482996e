"""Making the embedded champion: a small model that follows strategy prompts, from nothing.

Its text pairs every strategy prompt with traces laid out that strategy's way, and questions without
a prompt with bare answers. So the model has the skills, shows them only when prompted, and leaves
step 1 something to bake. The text never contains a held-out question (see `distforge.data`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distforge.data import STRATEGY_PROMPTS, Example, ReasoningDataset, make_examples
from distforge.data.text import completion_text
from distforge.errors import require_in
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.tokenizer import train_tokenizer
from distforge.optim import OptimizerConfig, build_optimizer
from distforge.rendering.plain import question_text
from distforge.telemetry import RunConsole
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from distforge.training.keeping import Keeper
from distforge.training.supervised import SupervisedConfig, SupervisedLoop

# Enough text for every word of every task; more changes nothing in the vocabulary.
_TOKENIZER_TEXTS = 4000
# Optimizer steps between two checkpoints.
CHECKPOINT_EVERY = 200
MODEL_DIRECTORY = "model"


@dataclass(frozen=True)
class ChampionRecipe:
    """How the embedded champion is made.

    architecture: shape of the model.
    vocab_size: ids learned by the tokenizer, thinking tokens not counted; at least 300.
    num_examples: distinct questions in the pretraining text.
    seed: of the questions, the weights and the mixture. Step 1's data have a seed of their own.
    prompted_fraction: share written with strategy prompt and trace; the rest are bare answers.
    training, optimizer: as in step 1.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    vocab_size: int = 1200
    num_examples: int = 40_000
    seed: int = 1001
    prompted_fraction: float = 0.7
    training: SupervisedConfig = field(default_factory=SupervisedConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_in("[0, 1]", prompted_fraction=self.prompted_fraction)
        require_in("[300, inf]", vocab_size=self.vocab_size)


def champion_examples(recipe: ChampionRecipe) -> list[Example]:
    """The questions of the pretraining text: none of them is held out, under any seed."""
    return [e for e in make_examples(recipe.num_examples, recipe.seed) if e.split == "train"]


class _Pretraining:
    """The `Trainee` of the champion: nothing is evaluated, and a step depends on nothing else."""

    def evaluate(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def make_champion(
    recipe: ChampionRecipe,
    engine_config: EngineConfig,
    max_length: int,
    directory: Path,
    world: World,
    console: RunConsole,
) -> None:
    """Train a champion by ``recipe`` and export it to ``directory/model``; collective.

    Continues from the checkpoints in ``directory``, if there are any. ``console`` shows the
    progress.

    Raises:
        RunStopped: SIGTERM or SIGINT came; a checkpoint is saved.
    """
    examples = champion_examples(recipe)
    tokenizer = train_tokenizer(
        (
            question_text(e.question, prompt=STRATEGY_PROMPTS[e.strategy])
            + completion_text(e.reasoning, e.answer)
            for e in examples[:_TOKENIZER_TEXTS]
        ),
        recipe.vocab_size,
    )
    dataset = _mixture(recipe, examples, tokenizer, max_length)
    torch.manual_seed(recipe.seed)
    model = build_model(
        recipe.architecture,
        len(tokenizer),
        recipe.seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    engine = TrainingEngine(
        model,
        lambda module: build_optimizer(module, recipe.optimizer),
        engine_config,
        world,
        recipe.training.micro_batches,
    )
    loop = SupervisedLoop(engine, dataset, recipe.training, world, tokenizer.pad_token_id)
    keeper = Keeper(_Pretraining(), engine, directory, world, loop.total_steps, CHECKPOINT_EVERY)
    keeper.resume()
    loop.step = keeper.step
    progress = console.progress(loop.total_steps, "champion", loop.step)
    with progress, keeper.stopping_between_steps():
        for record in loop.steps():
            console.update(record.step, record.as_metrics())
            keeper.after_step(record.step, loop.total_steps)
    with engine.whole_model() as whole:
        if world.is_main:
            export_model(whole, tokenizer, directory / MODEL_DIRECTORY)
    world.barrier()


def _mixture(
    recipe: ChampionRecipe,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> ReasoningDataset:
    """Some with strategy prompt and trace, the others as bare answers."""
    rng = random.Random(recipe.seed)
    prompted = [rng.random() < recipe.prompted_fraction for _ in examples]
    return ReasoningDataset(
        examples,
        tokenizer,
        max_length,
        prompted=prompted,
        direct=[not has_prompt for has_prompt in prompted],
    )
