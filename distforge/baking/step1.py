"""Step 1 from end to end: champion and data in, a baked, judged and registered model out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distforge.baking.config import NOT_IDENTITY, Step1Config
from distforge.baking.prompt_stage import bake_strategy_prompts
from distforge.baking.publish import publish
from distforge.baking.supervised.trainer import PromptBakingTrainer
from distforge.champion.make import ensure_champion
from distforge.config import config_sha256
from distforge.data import (
    THINKING_TOKENS,
    Example,
    data_note,
    dataset_sha256,
    load_data,
    write_splits,
)
from distforge.evaluation.scoring import Answered, answer_questions, summarize
from distforge.models.export import export_model
from distforge.models.loading import Champion, load_champion
from distforge.models.storage import TrainDtype, computing_dtype, storage_dtype
from distforge.models.vocabulary import add_thinking_tokens
from distforge.models.weight_files import weights_sha256
from distforge.reports.step1_summary import Step1Summary, Targets
from distforge.telemetry import RunLogger
from distforge.training.distributed import World, entered_world
from distforge.training.keeping import drop_checkpoints
from distforge.training.open_run import Run, finished_run, open_run
from distforge.training.run_directory import CHAMPION_DIRECTORY, SUMMARY_FILE
from distforge.training.signals import stop_at_once


def run_step1_baking(config: Step1Config, world: World | None = None) -> Step1Summary:
    """Bake the seven strategies into the configured champion; collective over the world's ranks.

    Makes the champion and the data where the configuration says so, trains, keeps the best weights,
    exports them, judges the export on every held-out question, registers it and writes the report.

    Raises:
        InputError: something the user gave cannot be used. A run directory made for nothing is
            removed again.
        RunStopped: SIGTERM or SIGINT came; training has saved a checkpoint, on all ranks at one
            step, and the same call resumes.
        DivergedError: too many steps in a row were skipped.
    """
    with entered_world(world) as joined, stop_at_once():
        return _run(config, joined)


def _run(config: Step1Config, world: World) -> Step1Summary:
    if (directory := finished_run(config, NOT_IDENTITY, world)) is not None:
        return Step1Summary.read(directory / SUMMARY_FILE)
    # What can be refused is looked at before anything is written, or trained for minutes.
    examples = load_data(config.data)
    dtype = _load_dtype(config, world)
    champion = None if config.champion.make else load_champion(config.champion.path, dtype)
    with open_run(config, 1, NOT_IDENTITY, world) as run:
        if champion is None:
            ensure_champion(config.champion, config.engine, config.data.max_length, world)
            champion = load_champion(config.champion.path, dtype)
        data = dataset_sha256(examples)
        run.start_from(training_data=data, champion=champion.sha256)
        summary = _bake(config, champion, examples, data, run, world)
        run.end(summary.converged, f"not converged: {'; '.join(summary.shortfalls)}")
        return summary


def _load_dtype(config: Step1Config, world: World) -> TrainDtype:
    """A prompt's baking computes with the champion before the engine is made."""
    return config.engine.load_dtype(world.device) if config.mode == "sft" else "float32"


def _bake(
    config: Step1Config,
    champion: Champion,
    examples: Sequence[Example],
    data_sha256: str,
    run: Run,
    world: World,
) -> Step1Summary:
    began = time.monotonic()
    directory, log, record = run.directory, run.log, run.record
    _keep_a_copy(config, champion, directory, world)
    add_thinking_tokens(champion.model, champion.tokenizer, THINKING_TOKENS, config.seed)
    parameters = champion.model.num_parameters()  # before ZeRO 3 shards them
    prompted = bake_strategy_prompts(config, champion, examples, directory, world, log)
    trainer = PromptBakingTrainer(
        prompted.model if prompted else champion.model,
        champion.tokenizer,
        examples,
        config,
        world,
        log,
        directory,
        record,
    )
    record.start()
    heldout = _keep_data(examples, directory, log, world)
    before = _report_start(trainer, champion, config, world, log)
    model_dir = directory / "model"
    outcome = trainer.train() if config.mode != "prompt" else trainer.keep()
    trainer.save_baked_model(model_dir)
    log.say(f"judging the exported model on {len(trainer.heldout)} held-out questions")
    answered = _ask_exported(model_dir, trainer, config, world)
    summary = Step1Summary(
        steps=outcome.steps,
        best_step=outcome.best.step,
        stopped_early=outcome.stopped_early,
        seconds=round(time.monotonic() - began, 1),
        parameters=parameters,
        model_dir=str(model_dir),
        heldout=str(heldout),
        registry_version="",
        config_sha256=config_sha256(config, exclude=NOT_IDENTITY),
        dataset_sha256=data_sha256,
        data_note=data_note(examples),
        champion=champion.source,
        champion_sha256=champion.sha256,
        model_sha256=weights_sha256(model_dir),
        too_long=trainer.dataset.too_long,
        mode=config.mode,
        prompt_kl_before=prompted.outcome.kl_before if prompted else math.nan,
        prompt_kl_after=prompted.outcome.kl_after if prompted else math.nan,
        **before,
        **_verdict(config, trainer, answered),
    )
    if world.is_main:
        summary = publish(config, summary, answered, directory, log, record)
        if not config.keep_checkpoints:
            drop_checkpoints(directory, record)
    world.barrier()
    return summary


def _keep_data(examples: Sequence[Example], directory: Path, log: RunLogger, world: World) -> Path:
    """The file of held-out questions."""
    if note := data_note(examples):
        log.say(f"data: {note}")
    return write_splits(examples if world.is_main else (), directory / "data")


def _keep_a_copy(config: Step1Config, champion: Champion, directory: Path, world: World) -> None:
    """A copy is registered, as loaded and whatever its form was: training changes the model in
    place, and nothing is written into a directory that belongs to the user."""
    if world.is_main and config.registry.enabled:
        export_model(champion.model, champion.tokenizer, directory / CHAMPION_DIRECTORY)


def _verdict(
    config: Step1Config, trainer: PromptBakingTrainer, answered: list[Answered]
) -> dict[str, Any]:
    """What the summary says of the answers, and whether they are good enough."""
    after = summarize(answered)
    convergence = trainer.check_convergence(after)
    return {
        "converged": convergence.converged,
        "shortfalls": convergence.shortfalls,
        "accuracy_overall": after.accuracy_overall,
        "accuracy": after.accuracy,
        "token_usage": after.token_usage,
        "questions": after.count,
        "targets": Targets(
            accuracy_overall=config.convergence.overall,
            accuracy_strategy=config.convergence.per_strategy,
        ),
    }


def _ask_exported(
    model_dir: Path, trainer: PromptBakingTrainer, config: Step1Config, world: World
) -> list[Answered]:
    """Judge what was exported, read back from disk: that, not the trainer's copy, is shipped."""
    baked = load_champion(str(model_dir), config.evaluation.dtype)
    return _ask(baked, trainer.heldout, trainer, config, world)


def _ask(
    model: Champion,
    examples: Sequence[Example],
    trainer: PromptBakingTrainer,
    config: Step1Config,
    world: World,
    prompted: bool = False,
) -> list[Answered]:
    return answer_questions(
        model.model.to(world.device),
        model.tokenizer,
        examples,
        world,
        max_new_tokens=trainer.max_new_tokens,
        batch_size=config.evaluation.batch_size,
        prompted=prompted,
    )


def _report_start(
    trainer: PromptBakingTrainer,
    champion: Champion,
    config: Step1Config,
    world: World,
    log: RunLogger,
) -> dict[str, Any]:
    """Ask the champion, so that what baking adds can be told from what was there."""
    # Questions that name no strategy have no prompt to be asked with.
    named = [example for example in trainer.validation if example.strategy]
    if (asked := _champion_to_ask(champion, config)) is None:
        plain = summarize(trainer.ask(trainer.heldout))
        prompted = summarize(trainer.ask(named, prompted=True))
    else:
        plain = summarize(_ask(asked, trainer.heldout, trainer, config, world))
        prompted = summarize(_ask(asked, named, trainer, config, world, True))
    with_prompts = f", {prompted.accuracy_overall:.1%} with strategy prompts" if named else ""
    log.say(
        f"champion {champion.source}: {plain.accuracy_overall:.1%} from the question alone"
        f"{with_prompts}; {len(trainer.dataset)} training examples, {len(trainer.heldout)} held "
        f"out, {trainer.dataset.too_long} too long"
    )
    return {
        "champion_accuracy": plain.accuracy_overall,
        "champion_accuracy_by_strategy": plain.accuracy,
        "champion_prompted_accuracy": prompted.accuracy_overall,
        "champion_prompted_questions": prompted.count,
    }


def _champion_to_ask(champion: Champion, config: Step1Config) -> Champion | None:
    """The champion in the dtype that its export will be asked in; None where the trainer holds just
    that, whole or sharded."""
    dtype = config.evaluation.dtype
    if computing_dtype(dtype, storage_dtype(champion.model)) == torch.float32:
        return None if config.mode == "sft" else champion
    again = load_champion(champion.source, dtype)
    add_thinking_tokens(again.model, again.tokenizer, THINKING_TOKENS, config.seed)
    return again
