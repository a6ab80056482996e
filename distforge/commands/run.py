"""``distforge run``: the pipeline."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from distforge.activity import format_seconds
from distforge.cli import BAD_INPUT, GOAL_MISSED, OK
from distforge.commands.dry_run import describe_pipeline
from distforge.pipeline import Outcome, PipelineConfig, StageTime, run_pipeline

__all__ = ["PipelineConfig", "run"]

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "run": (
        "name",
        "champion.path",
        "champion.make",
        "data.path",
        "data.num_examples",
        "training.max_steps",
        "training.batch_size",
        "training.micro_batches",
        "engine.dtype",
        "engine.zero_stage",
        "evaluation.every_steps",
        "checkpoint_every",
        "step2.episodes.episodes",
        "step2.episodes.batch_size",
        "step2.thought.max_tokens",
        "step2.reward.kind",
        "resume",
        "force",
        "force_from",
        "dry_run",
    )
}


def run(config: PipelineConfig) -> int:
    """Run what is missing of phase 3; 3 when a goal was missed, and no model is handed off."""
    if config.dry_run:
        text, possible = describe_pipeline(config)
        print(text)
        return OK if possible else BAD_INPUT
    outcome = run_pipeline(config, say=lambda line: print(f"==> {line}", flush=True))
    if os.environ.get("RANK", "0") == "0":
        Console().print(time_table(outcome.times))
        print("\n".join(conclusion(outcome)))
    return OK if outcome.met else GOAL_MISSED


def time_table(times: tuple[StageTime, ...]) -> Table:
    """What was done for each stage, and how long it took."""
    table = Table(title="Elapsed", title_justify="left")
    table.add_column("stage")
    table.add_column("what")
    table.add_column("time", justify="right")
    for time in times:
        took = f" (took {format_seconds(time.earlier)})" if time.earlier is not None else ""
        table.add_row(time.name, time.went + took, format_seconds(time.seconds))
    table.add_section()
    table.add_row("all", "", format_seconds(sum(time.seconds for time in times)))
    return table


def conclusion(outcome: Outcome) -> list[str]:
    """The last lines: whether the model goes on to phase 4, what was missed, and the report."""
    lines = []
    if outcome.met:
        what = "ready for phase 4" if outcome.refused is not None else "every goal of step 1 is met"
        lines.append(f"{outcome.model}: {what}")
    else:
        lines.append(f"{outcome.model}: NOT handed off")
        lines += [f"  missed: {reason}" for reason in outcome.missed]
        lines += [f"  phase 4 refuses it: {reason}" for reason in outcome.refused or ()]
    if outcome.report is not None:
        lines.append(f"report {outcome.report}")
    return lines
