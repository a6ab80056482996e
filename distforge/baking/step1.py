"""Step 1 from end to end: champion and data in, a baked, judged and registered model out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from distforge.baking.config import NOT_IDENTITY, Step1Config
from distforge.baking.trainer import PromptBakingTrainer
from distforge.config import config_sha256, dump_toml, to_dict
from distforge.data import (
    THINKING_TOKENS,
    Example,
    dataset_sha256,
    make_examples,
    read_examples,
    write_examples,
)
from distforge.evaluation.scoring import answer_questions, summarize
from distforge.models.loading import Champion, load_champion
from distforge.models.vocabulary import add_thinking_tokens
from distforge.telemetry import RunLogger
from distforge.training.champion import ensure_champion
from distforge.training.distributed import World, close_world, init_world
from distforge.training.run_directory import claim_run_directory

logger = logging.getLogger(__name__)

_SAMPLES_PER_STRATEGY = 3


@dataclass(frozen=True)
class Step1Summary:
    """What step 1 reached: the content of ``summary.json``. Fractions are in [0, 1].

    ``champion_accuracy`` and ``champion_prompted_accuracy`` are the champion's, on the same held-out
    questions, without and with the strategy prompts. ``seconds`` counts from the champion on.
    """

    phase: int
    step: int
    converged: bool
    shortfalls: tuple[str, ...]
    accuracy_overall: float
    accuracy: dict[str, float]
    token_usage: dict[str, float]
    champion_accuracy: float
    champion_accuracy_by_strategy: dict[str, float]
    champion_prompted_accuracy: float
    questions: int
    steps: int
    best_step: int
    stopped_early: bool
    seconds: float
    parameters: int
    model_dir: str
    heldout: str
    registry_version: str
    config_sha256: str
    dataset_sha256: str
    champion: str
    champion_sha256: str
    too_long: int


def run_step1_baking(config: Step1Config, world: World | None = None) -> Step1Summary:
    """Bake the seven strategies into the configured champion; collective over the world's ranks.

    Makes the champion and the data where the configuration says so, trains, keeps the best weights,
    exports them, judges the export on every held-out question, registers it and writes the report.

    Raises:
        InputError: something the user gave cannot be used. A run directory made for nothing is
            removed again.
    """
    own = world is None
    world = world or init_world()
    try:
        return _run(config, world)
    finally:
        if own:
            close_world(world)


def _run(config: Step1Config, world: World) -> Step1Summary:
    # What can be refused is looked at before anything is written, or trained for minutes.
    examples = load_data(config.data)
    champion = None if config.champion.make else load_champion(config.champion.path)
    claim = claim_run_directory(
        config.output,
        config.name,
        dump_toml(config),
        config_sha256(config, exclude=NOT_IDENTITY),
        config.existing,
        world,
    )
    try:
        with RunLogger(
            claim.path, config.telemetry, to_dict(config), config.name, enabled=world.is_main
        ) as log:
            if champion is None:
                ensure_champion(config.champion, config.engine, config.data.max_length, world)
                champion = load_champion(config.champion.path)
            return _bake(config, champion, examples, claim.path, world, log)
    except InputError:
        claim.release(world)
        raise


def load_data(config: DataConfig) -> list[Example]:
    """The examples that ``config`` names, or makes; both splits."""
    if config.path:
        return read_examples(Path(config.path))
    return make_examples(config.num_examples, config.seed)


def _bake(
    config: Step1Config,
    champion: Champion,
    examples: list[Example],
    directory: Path,
    world: World,
    log: RunLogger,
) -> Step1Summary:
    began = time.monotonic()
    add_thinking_tokens(champion.model, champion.tokenizer, THINKING_TOKENS, config.seed)
    trainer = PromptBakingTrainer(
        champion.model, champion.tokenizer, examples, config, world, log, directory
    )
    if world.is_main:
        for split in ("train", "heldout"):
            rows = [e for e in examples if e.split == split]
            write_examples(rows, directory / "data" / f"{split}.jsonl")
    before = summarize(trainer.ask(trainer.heldout))
    prompted = summarize(trainer.ask(trainer.validation, prompted=True))
    outcome = trainer.train()
    model_dir = directory / "model"
    trainer.save_baked_model(model_dir)
    baked = load_champion(str(model_dir))
    answered = answer_questions(
        baked.model.to(world.device),
        baked.tokenizer,
        trainer.heldout,
        world,
        max_new_tokens=trainer.max_new_tokens,
        batch_size=config.evaluation.batch_size,
    )
    after = summarize(answered)
    convergence = trainer.check_convergence(after)
    summary = Step1Summary(
        phase=3,
        step=1,
        converged=convergence.converged,
        shortfalls=convergence.shortfalls,
        accuracy_overall=after.accuracy_overall,
        accuracy=after.accuracy,
        token_usage=after.token_usage,
        champion_accuracy=before.accuracy_overall,
        champion_accuracy_by_strategy=before.accuracy,
        champion_prompted_accuracy=prompted.accuracy_overall,
        questions=after.count,
        steps=outcome.steps,
        best_step=outcome.best.step,
        stopped_early=outcome.stopped_early,
        seconds=round(time.monotonic() - began, 1),
        parameters=sum(p.numel() for p in baked.model.parameters()),
        model_dir=str(model_dir),
        heldout=str(directory / "data" / "heldout.jsonl"),
        registry_version="",
        config_sha256=config_sha256(config, exclude=NOT_IDENTITY),
        dataset_sha256=dataset_sha256(examples),
        champion=champion.source,
        champion_sha256=champion.sha256,
        too_long=trainer.dataset.too_long,
    )
    if world.is_main:
        summary = _publish(config, summary, answered, directory, log)
    world.barrier()
    return summary
