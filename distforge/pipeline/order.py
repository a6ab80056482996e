"""The order of phase 3: champion, step 1, step 2 with its verdict, hand-off check, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from distforge.errors import InputError
from distforge.pipeline.config import From, PipelineConfig
from distforge.pipeline.notes import Notes
from distforge.pipeline.report_stage import ReportStage
from distforge.pipeline.stages import (
    ChampionStage,
    Found,
    Stage,
    StageName,
    step1_stage,
    step2_stage,
)
from distforge.pipeline.whole_report import refusals
from distforge.reports.pipeline_record import StageRecord
from distforge.reports.run_index import write_run_index
from distforge.training.afterwards import spared
from distforge.training.distributed import World, entered_world, on_main
from distforge.training.run_directory import holding
from distforge.training.signals import stop_at_once

Say = Callable[[str], None]
# What is done where a stage's output is found so: as it begins, and when it is done.
_DOES = {
    "unfinished": ("resuming", "resumed"),
    "outdated": ("making it again", "made again"),
    "absent": ("making it", "made"),
}


@dataclass(frozen=True)
class StageTime:
    """How a stage went ("found", "made", "made again", "resumed"), and its seconds in this call.

    ``earlier``: of one that was found, the seconds that it took when it was made, where known.
    """

    name: StageName
    went: str
    seconds: float
    earlier: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How phase 3 ended.

    missed: what was not reached, in words. refused: all that keeps the model from phase 4; None
    where there is no model to hand over. times: of the stages, in order. model: of the last step
    that ran. report: the page of the whole, None where the extra for it is missing.
    """

    missed: tuple[str, ...]
    refused: tuple[str, ...] | None
    times: tuple[StageTime, ...]
    model: Path
    report: Path | None

    @property
    def met(self) -> bool:
        """Whether every goal was met."""
        return not self.missed and not self.refused


def phase_3(config: PipelineConfig, world: World) -> list[Stage]:
    """The stages that make models, in order."""
    stages: list[Stage] = [
        ChampionStage(config.step1_config, world),
        step1_stage(config.step1_config, world),
    ]
    if (step2 := config.step2_config) is not None:
        stages.append(step2_stage(step2, world))
    return stages


def run_pipeline(config: PipelineConfig, say: Say = print, world: World | None = None) -> Outcome:
    """Run what is missing of phase 3; collective over the world's ranks.

    A step that misses its goal ends it, and the report says so.

    Args:
        say: is given a line about each stage, on rank 0 alone.

    Raises:
        InputError: output that can be neither used nor replaced, or what the steps refuse.
        RunStopped: SIGTERM or SIGINT came; the same command resumes.
        Exception: what else the steps raise.
    """
    with entered_world(world) as joined, stop_at_once(), _holding(config, joined):
        stages = phase_3(config, joined)
        notes = Notes(config, joined)
        report = ReportStage(config.run_directories, notes, joined)
        on_main(joined, lambda: _force([*stages, report], config.forced_from))
        try:
            return _run(stages, report, notes, say, joined)
        except InputError:
            notes.withdraw()
            raise


def _holding(config: PipelineConfig, world: World) -> AbstractContextManager[None]:
    """No other process runs this pipeline, though each stage's directory is held by that alone."""
    directory = config.run_directories[0]
    of_all = directory.with_name(f"{directory.name}.pipeline")
    is_again = config.resume != "off"
    return holding(of_all, world, f"the pipeline of {directory}", is_again=is_again)


def _run(
    stages: Sequence[Stage], report: ReportStage, notes: Notes, say: Say, world: World
) -> Outcome:
    times: list[StageTime] = []
    missed: list[str] = []
    for stage in stages:
        times.append(_carry_out(stage, notes, say, world))
        missed = on_main(world, stage.missed)
        if missed:
            break
    last = times[-1].name
    model = notes.directory.parent / (getattr(notes.record, last)) / "model"
    refused = on_main(world, lambda: refusals(model)) if last == "step2" else None
    with spared("report"):
        times.append(_carry_out(report, notes, say, world))
        on_main(world, lambda: str(write_run_index(notes.directory.parent)))
    return Outcome(
        missed=tuple(missed),
        refused=None if refused is None else tuple(refused),
        times=tuple(times),
        model=model,
        report=report.page if report.page.is_file() else None,
    )


def _force(stages: Sequence[Stage], first: From) -> None:
    """Remove what the stages from ``first`` on left; the last one's first, so that what a kill
    leaves of this is a pipeline that ends earlier."""
    names = [stage.name for stage in stages]
    for stage in reversed(stages[names.index(first) :] if first != "none" else []):
        stage.remove()


def _carry_out(stage: Stage, notes: Notes, say: Say, world: World) -> StageTime:
    began = time.monotonic()
    state, why = on_main(world, lambda: astuple(stage.find()))
    found = Found(state, why)
    if found.state == "finished":
        if world.is_main:
            say(f"{stage.name}: {found.why}: skipped")
        earlier = notes.stage(stage.name).seconds
        return StageTime(stage.name, "found", time.monotonic() - began, earlier)
    does, went = _DOES[found.state]
    if world.is_main:
        say(f"{stage.name}: {found.why}: {does}")
    if found.state == "outdated":
        on_main(world, stage.remove)
    resumed = found.state == "unfinished"
    notes.note_stage(stage.name, StageRecord(resumed=resumed))
    world.barrier()
    stage.run()
    seconds = time.monotonic() - began
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    notes.note_stage(
        stage.name, StageRecord(seconds=round(seconds, 1), resumed=resumed, ended=ended)
    )
    return StageTime(stage.name, went, seconds)
