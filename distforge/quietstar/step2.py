"""Step 2 from end to end: a baked model in, a model that thinks out, examined and registered."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from distforge.config import config_sha256
from distforge.data import write_splits
from distforge.models.loading import load_champion
from distforge.quietstar.inputs import Step2Inputs, load_inputs, require_baked
from distforge.quietstar.looks import Looks
from distforge.quietstar.publish import publish, summarize_step2
from distforge.quietstar.rewarded import run_rewarded
from distforge.quietstar.screening import screen
from distforge.quietstar.step2_config import NOT_IDENTITY, Step2Config
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.reports.step2_summary import Step2Summary
from distforge.telemetry import RunConsole
from distforge.theater.control import CONTROL_DIRECTORY, train_control
from distforge.theater.exam import Examiner
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.thinking.positions import placed
from distforge.thinking.tags import Tags
from distforge.training.distributed import World, entered_world
from distforge.training.open_run import Run, finished_run, open_run
from distforge.training.run_directory import SUMMARY_FILE
from distforge.training.signals import stop_at_once


def run_step2_rl(config: Step2Config, world: World | None = None) -> Step2Summary:
    """Teach the configured baked model to think; collective over the world's ranks.

    Trains on generated thoughts, keeps the best weights, exports them, examines the export on
    held-out items that picked nothing, beside the baked model and beside controls, registers it and
    writes the report.

    Raises:
        InputError: something the user gave cannot be used, such as a model that is baked too
            little. A run directory made for nothing is removed again.
        RunStopped: SIGTERM or SIGINT came; a checkpoint is saved, and the same call resumes.
        DivergedError: too many steps in a row were skipped.
        RolloutError: no more rollouts can be had.
    """
    with entered_world(world) as joined, stop_at_once():
        return _run(config, joined)


def _run(config: Step2Config, world: World) -> Step2Summary:
    if (directory := finished_run(config, NOT_IDENTITY, world)) is not None:
        return Step2Summary.read(directory / SUMMARY_FILE)
    if config.reward.function:
        return run_rewarded(config, world)
    inputs = load_inputs(config)
    with open_run(config, 2, NOT_IDENTITY, world) as run:
        run.start_from(data=inputs.dataset_sha256, baked_model=inputs.baked.sha256)
        summary = _reinforce(config, inputs, run, world)
        better = "" if summary.improved else "not shown to be better than the baked model; "
        run.end(summary.is_goal_reached, f"{better}the verdict is {summary.verdict}")
        return summary


def _placed_once(config: Step2Config, inputs: Step2Inputs, world: World) -> Step2Inputs:
    """Held-out items with their places. Free text is thought about at the same ones by all models:
    where the baked one is unsure, if it is uncertainty that decides."""
    model = inputs.baked.model.to(world.device)
    tags = Tags.from_tokenizer(inputs.baked.tokenizer, model=model)
    return replace(
        inputs,
        probed=placed(inputs.probed, model, config.positions, tags),
        heldout=placed(inputs.heldout, model, config.positions, tags),
    )


def _examiner(config: Step2Config, inputs: Step2Inputs, world: World) -> Examiner:
    asked = {item.id for item in inputs.heldout}
    return Examiner(
        inputs.heldout,
        [example for example in inputs.examples if example.id in asked],
        inputs.baked.tokenizer,
        config.thought,
        config.probe.batch_size,
        world,
    )


def _controls(
    config: Step2Config,
    inputs: Step2Inputs,
    trainer: ThoughtTrainer,
    directory: Path,
    world: World,
) -> dict[str, nn.Module]:
    """The control of equal compute: the baked model, taught bare answers to the same questions for
    as many tokens as reinforcement took. Of free text there is none."""
    if config.task == "text" or not config.control.enabled:
        return {}
    control = train_control(
        # Loaded anew: reinforcement changed it in place.
        load_champion(inputs.baked.source, config.engine.load_dtype(world.device)),
        inputs.items,
        round(trainer.probe_log.training_tokens),
        config.control,
        config.engine,
        world,
        RunConsole(console=Console(quiet=not world.is_main)),
        directory / CONTROL_DIRECTORY,
    )
    return {"direct": control.model}


def _items(
    model: ThinkingModel, config: Step2Config, inputs: Step2Inputs, world: World, run: Run
) -> list[ThoughtItem]:
    """What is learned from: of questions, those that the baked model is unsure of."""
    if config.task == "text":
        return inputs.items
    tags = Tags.from_tokenizer(inputs.baked.tokenizer, model=model.lm)
    require_baked(model, inputs.probed, config, tags)
    kept = run.directory / "screened.json"
    return screen(model, inputs.items, config, tags, world, run.log, kept)


def _reinforce(
    config: Step2Config,
    inputs: Step2Inputs,
    run: Run,
    world: World,
) -> Step2Summary:
    began = time.monotonic()
    directory, log, record = run.directory, run.log, run.record
    inputs = _placed_once(config, inputs, world)
    examine = _examiner(config, inputs, world)
    torch.manual_seed(config.seed)
    model = ThinkingModel.wrap(inputs.baked.model, mixing=config.task == "text" and config.mixing)
    model.to(world.device)
    items = _items(model, config, inputs, world, run)
    tokenizer, probed = inputs.baked.tokenizer, inputs.probed
    reference = copy.deepcopy(model)
    looks = Looks(reference, tokenizer, config, probed, inputs.heldout, world, log)
    # While it is whole, and as precise as the export that it will be held against.
    parameters, before = model.num_parameters(), examine(model, ("none",))
    trainer = ThoughtTrainer(
        model, tokenizer, items, probed, config, world, log, directory, record, looks, reference
    )
    heldout_path = write_splits(inputs.examples if world.is_main else (), directory / "data")
    if inputs.data_note:
        log.say(f"data: {inputs.data_note}")
    record.start()
    outcome = trainer.train()
    model_dir = trainer.save_model(directory / "model")
    log.say(f"examining the exported model on {len(inputs.heldout)} held-out items")
    # That, not the trainer's copy, is shipped.
    exported = ThinkingModel.from_pretrained(model_dir).to(world.device)
    after = examine(exported)
    verdict = looks.last(exported, _controls(config, inputs, trainer, directory, world))
    summary = summarize_step2(
        config,
        before,
        after,
        verdict,
        episodes=outcome.episodes,
        steps=outcome.steps,
        best_step=outcome.best.step,
        rollbacks=[asdict(rollback) for rollback in outcome.rollbacks],
        ended_by_verdict=outcome.ended_by_verdict,
        parameters=parameters,
        seconds=round(time.monotonic() - began, 1),
        model_dir=str(directory / "model"),
        heldout=str(heldout_path),
        config_sha256=config_sha256(config, exclude=NOT_IDENTITY),
        dataset_sha256=inputs.dataset_sha256,
        data_note=inputs.data_note,
        baked=inputs.baked.source,
        baked_sha256=inputs.baked.sha256,
        **inputs.record.as_fields(),
    )
    if world.is_main:
        samples = [row.as_dict() for row in after.answered]
        summary = publish(config, summary, samples, directory, log, record)
    world.barrier()
    return summary
