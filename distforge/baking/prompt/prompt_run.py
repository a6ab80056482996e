"""A prompt-baking run from end to end: model and prompt files in, baked model and report out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distforge.baking.prompt.baked import BakedPrompt
from distforge.baking.prompt.prompt_baker import PromptBaker
from distforge.baking.prompt.prompt_report import forgetting_table, report_table
from distforge.baking.prompt.prompt_run_config import NOT_IDENTITY, BakePromptConfig
from distforge.baking.prompt.sizing import described, sized
from distforge.config import config_sha256
from distforge.data import Example, data_note, dataset_sha256, load_data
from distforge.errors import InputError, first_line
from distforge.evaluation.checker import load_checker
from distforge.models.export import export_model
from distforge.models.loading import Champion, load_champion
from distforge.registry.manifest import write_manifest
from distforge.reports.page import REPORT_HTML
from distforge.reports.prompt_answers import write_answers
from distforge.reports.prompt_page import write_prompt_report
from distforge.reports.prompt_summary import AnswerRow, BakeReport, Drift, PromptSummary
from distforge.telemetry import RunLogger
from distforge.training.afterwards import spared
from distforge.training.distributed import World
from distforge.training.host_memory import return_freed_memory
from distforge.training.open_run import Run, finished_run, open_run
from distforge.training.run_directory import CHAMPION_DIRECTORY, SUMMARY_FILE
from distforge.training.run_inputs import path_sha256
from distforge.training.run_record import RunRecord
from distforge.training.signals import stop_at_once


def run_prompt_baking(config: BakePromptConfig, world: World) -> PromptSummary:
    """Bake, export, register and report; collective over the world's ranks.

    Raises:
        InputError: something the user gave cannot be used. A run directory made for nothing is
            removed again.
        RunStopped: SIGTERM or SIGINT came; a bake under way has saved a checkpoint, on all ranks
            at one step, and the same call resumes.
    """
    with stop_at_once():
        return _check_and_run(config, world)


def _check_and_run(config: BakePromptConfig, world: World) -> PromptSummary:
    config.require_consistent()
    prompts = [read_prompt(path) for path in config.prompt]
    champion = load_champion(config.model, config.dtype)
    examples = load_data(config.data) if config.data.is_given else None
    baking = sized(config.baking, champion.model, champion.tokenizer, world, examples)
    left_open, config = baking != config.baking, dataclasses.replace(config, baking=baking)
    if (directory := finished_run(config, NOT_IDENTITY, world)) is not None:
        return PromptSummary.read(directory / SUMMARY_FILE)
    baker = _baker(config, champion, examples, world)
    baker.check(prompts, config.strategy)
    if config.adapter:
        baker.load(Path(config.adapter), config.strength)
    with open_run(config, 1, NOT_IDENTITY, world) as run:
        if left_open:
            run.log.say(described(baking, champion.model, world))
        if note := data_note(examples or ()):
            run.log.say(f"data: {note}")
        run.start_from(
            model=champion.sha256,
            prompts=hashlib.sha256("\0".join(prompts).encode()).hexdigest(),
            questions=dataset_sha256(examples) if examples else "",
            adapter=path_sha256(config.adapter),
        )
        baker = _baker(config, champion, examples, world, run.log, run.directory / "bakes")
        summary = _run(config, champion, baker, prompts, run, world)
        run.end(summary.followed, "a prompt's KL did not come down")
        return summary


def read_prompt(path: Path) -> str:
    """The text of a prompt file; `InputError` when it cannot be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the prompt {path} cannot be read ({first_line(error)}); give a file of UTF-8 text"
        ) from error
    if not text:
        raise InputError(f"the prompt {path} is empty; write what the model should do into it")
    return text


def _baker(
    config: BakePromptConfig,
    champion: Champion,
    examples: Sequence[Example] | None,
    world: World,
    log: RunLogger | None = None,
    directory: Path | None = None,
) -> PromptBaker:
    return PromptBaker(
        champion.model,
        champion.tokenizer,
        config=config.baking,
        examples=examples,
        world=world,
        logger=log,
        directory=directory,
        check=load_checker(config.check) if config.check else None,
    )


def _run(
    config: BakePromptConfig,
    champion: Champion,
    baker: PromptBaker,
    prompts: list[str],
    run: Run,
    world: World,
) -> PromptSummary:
    directory, log, record = run.directory, run.log, run.record
    record.start()
    bakes, extra = _bake(config, baker, prompts, log)
    strength = config.strength
    if config.graded:
        grades = baker.grade(bakes[-1])
        strength = grades.strength(config.strength)
        log.say(f"{config.strength:.0%} of the answers turn at a scale of {strength:.3f}")
        extra["grades"] = grades
    log.say("asking held-out questions")
    return_freed_memory()
    final = bakes[-1].at(strength)
    answers: list[AnswerRow] = []
    reports = tuple(
        baker.report(
            dataclasses.replace(baked, delta=final.delta, base=final.base, strength=final.strength),
            questions=config.questions,
            others=config.others,
            keep=answers.append,
        )
        for baked in _one_a_prompt(bakes)
    )
    model_dir = directory / "model"
    version = ""
    if world.is_main:
        if not (model_dir / "manifest.json").is_file():
            export_model(final.model, champion.tokenizer, model_dir)
            write_manifest(model_dir)
        if config.registry.enabled:
            with spared("registry entry"):
                version = _register(config, champion, reports, model_dir, record)
    version = world.broadcast_object(version)
    summary = PromptSummary(
        mode="prompt",
        reports=reports,
        model_dir=str(model_dir),
        registry_version=version,
        champion=champion.source,
        champion_sha256=champion.sha256,
        config_sha256=config_sha256(config, exclude=NOT_IDENTITY),
        **extra,
    )
    if world.is_main:
        _leave(summary, answers, directory, log)
    world.barrier()
    return summary


def _leave(
    summary: PromptSummary, answers: list[AnswerRow], directory: Path, log: RunLogger
) -> None:
    """What is to be read of the run, on disk and on the console."""
    with spared("answers"):
        write_answers(answers, directory)
    summary.write(directory / SUMMARY_FILE)
    with spared("report", f"distforge report {directory} writes it"):
        write_prompt_report(directory)
    with spared("table"):
        log.show(report_table(summary.reports))
    registered = summary.registry_version or "off"
    log.say(f"model {summary.model_dir}  registry {registered}  report {directory / REPORT_HTML}")


def _bake(
    config: BakePromptConfig, baker: PromptBaker, prompts: list[str], log: RunLogger
) -> tuple[list[BakedPrompt], dict[str, Any]]:
    """The bakes in order, the last being the result, and what else the summary tells."""
    strategy = config.strategy or None
    if config.adapter:
        return [baker.load(Path(config.adapter))], {"adapter": config.adapter}
    if len(prompts) > 1:
        whose = [strategy] * len(prompts)
        sequence = baker.bake_sequence(prompts, strategies=whose, questions=config.questions or 100)
        log.show(forgetting_table(sequence.forgetting))
        return list(sequence.bakes), {"forgetting": sequence.forgetting}
    if config.rounds > 1:
        pursuit = baker.pursue(prompts[0], config.rounds, strategy=strategy)
        return list(pursuit.rounds), {"pursuit": Drift(pursuit.drift, pursuit.held_back)}
    return [baker.bake(prompts[0], strategy=strategy)], {}


def _one_a_prompt(bakes: list[BakedPrompt]) -> list[BakedPrompt]:
    """The last bake of every prompt: the rounds of a pursuit bake the same one."""
    return list({baked.prompt: baked for baked in bakes}.values())


def _register(
    config: BakePromptConfig,
    champion: Champion,
    reports: tuple[BakeReport, ...],
    model_dir: Path,
    record: RunRecord,
) -> str:
    # A copy, as loaded: nothing is written into a directory that belongs to the user.
    origin = model_dir.parent / CHAMPION_DIRECTORY
    export_model(champion.model, champion.tokenizer, origin)
    first = reports[0]
    metrics = {
        "kl_before": first.kl_before,
        "kl_after": first.kl_after,
        **{f"accuracy_{name}": cell.accuracy for name, cell in first.conditions.items()},
        **{f"adherence_{name}": cell.adherence for name, cell in first.conditions.items()},
    }
    parent = {
        "phase": 2,
        "step": 0,
        "model_type": "champion",
        "model_path": origin,
        "metadata": {"source": champion.source, "weights_sha256": champion.sha256},
    }
    baked = {
        "phase": 3,
        "step": 1,
        "model_type": "baked_prompt",
        "model_path": model_dir,
        "metadata": {
            "metrics": metrics,
            "config_sha256": config_sha256(config, exclude=NOT_IDENTITY),
            "base_model": champion.source,
            "strength": str(first.strength),
        },
    }
    return record.register(parent, baked)[1]
