"""``index.html`` of a pipeline: the verdict first, then the evidence, then each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.activity import format_seconds
from distforge.errors import InputError
from distforge.handoff.to_phase4 import find_faults
from distforge.reports import canvas, page
from distforge.reports.page_parts import Badge, Card, Link, Row, Table
from distforge.reports.pipeline_record import PipelineRecord
from distforge.reports.related import INDEX_NAME, related_runs, relative, weights_of
from distforge.reports.samples import SAMPLES_NAME, read_samples
from distforge.reports.step1_plots import RunPlots
from distforge.reports.step1_report import step1_badge, step1_lead, step1_tiles
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.step2_plots import ReinforcementPlots
from distforge.reports.step2_report import improved_badge, step2_lead, step2_tiles
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.summary import SUMMARY_NAME
from distforge.reports.unfinished import how_far
from distforge.reports.verdict_section import (
    VerdictSection,
    control_table,
    recorded_verdict,
    verdict_badge,
    verdict_section,
)
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

_STAGES = {
    "champion": "champion",
    "step1": "step 1: data, baking, exam",
    "step2": "step 2: thoughts, exam, verdict",
    "report": "report",
}
# Wrong answers and right ones that are shown, at most.
_WRONG, _RIGHT = 4, 4


@dataclass(frozen=True)
class StepSection:
    """A step on the page; of one that has not ended, what there is to say of it."""

    identity: str
    title: str
    lead: str
    tiles: Sequence[tuple[str, str]] = ()
    quiet: Sequence[str] = ()
    panels: Mapping[str, str] | None = None
    link: Link | None = None


@dataclass(frozen=True)
class WholePage:
    """What the page shows; see `page.Page`. ``refused``: None where there is no model yet."""

    badges: Sequence[Badge]
    lead: str
    links: Sequence[Link]
    facts: Sequence[str]
    command: str
    verdict: VerdictSection | None
    controls: Table | None
    control_plots: Mapping[str, str]
    samples: Sequence[Mapping[str, Any]]
    steps: Sequence[StepSection]
    lineage: Sequence[Card]
    refused: Sequence[str] | None
    tables: Sequence[Table]


def write_whole_report(run_dir: Path) -> Path:
    """Write the report of the pipeline that a run of either step belongs to; the page's path.

    Raises:
        InputError: its step 1 is not beside it, or a file is malformed.
    """
    found = related_runs(run_dir)
    if found is None:
        raise InputError(
            f"{run_dir} belongs to no pipeline: the run of step 1 that it started from is not "
            "in the same folder; give the directory of step 1's run"
        )
    first = _finished(found.step1)
    second = None if found.step2 is None else _finished(found.step2)
    one = Step1Summary.read(first) if first else None
    two = Step2Summary.read(second) if second else None
    content = _content(found.step1, found.step2, one, two, found.record)
    text = page.render(
        "whole.html.jinja", page=content, title=f"Phase 3: {found.step1.resolve().name}"
    )
    path = found.step1 / INDEX_NAME
    durable.write_text(path, text)
    return path


def refusals(model: Path) -> list[str]:
    """All that keeps a model from phase 4; an `InputError` on the way is one of them."""
    try:
        return find_faults(model)
    except InputError as error:
        return [str(error)]


def _finished(run_dir: Path) -> Path | None:
    path = run_dir / SUMMARY_NAME
    return path if path.is_file() else None


def _content(
    step1: Path,
    step2: Path | None,
    one: Step1Summary | None,
    two: Step2Summary | None,
    record: PipelineRecord | None,
) -> WholePage:
    refused = refusals(step2 / "model") if step2 is not None and two is not None else None
    steps = [_step1_section(step1, one)]
    verdict = controls = None
    plots: Mapping[str, str] = {}
    samples: list[Mapping[str, Any]] = []
    if step2 is not None:
        steps.append(_step2_section(step1, step2, two))
    if step2 is not None and two is not None:
        origin = str(step2 / SUMMARY_NAME)
        verdict = verdict_section(two, origin)
        controls = control_table(two, recorded_verdict(two, origin))
        drawn = ReinforcementPlots([], two)
        plots = canvas.draw_apart({"What a thought is worth": drawn.draw_ablations})
        samples = _both_kinds(read_samples(step2 / SAMPLES_NAME))
    last = step2 if step2 is not None and two is not None else step1
    return WholePage(
        badges=_badges(one, two, step2, refused),
        lead=_lead(one, two, step2, refused),
        links=[Link("all runs", f"../{INDEX_NAME}")],
        facts=_facts(last, record),
        command=record.command if record else "",
        verdict=verdict,
        controls=controls,
        control_plots=plots if controls else {},
        samples=samples,
        steps=steps,
        lineage=_lineage(step1, step2, one, two),
        refused=refused,
        tables=_tables(record, one, two),
    )


def _badges(
    one: Step1Summary | None,
    two: Step2Summary | None,
    step2: Path | None,
    refused: Sequence[str] | None,
) -> list[Badge]:
    if one is None or (one.converged and step2 is not None and two is None):
        return [Badge("verdict", "unfinished", None)]
    if two is None:
        return [step1_badge(one)]
    handed = Badge("handed", "not handed off" if refused else "ready for phase 4", not refused)
    return [verdict_badge(two.verdict), improved_badge(two), handed]


def _lead(
    one: Step1Summary | None,
    two: Step2Summary | None,
    step2: Path | None,
    refused: Sequence[str] | None,
) -> str:
    if one is None:
        return "Unfinished: step 1 has not ended yet."
    if not one.converged:
        return f"It ended with step 1. {step1_lead(one)}"
    if two is None:
        after = "" if step2 is None else " Unfinished: step 2 has not ended yet."
        return f"Step 1: {step1_lead(one)}{after}"
    where = "may go on to phase 4" if not refused else "does not go on to phase 4"
    return f"{step2_lead(two)} The model {where}."


def _facts(last: Path, record: PipelineRecord | None) -> list[str]:
    facts = page.when(last)
    if record is not None:
        facts += [record.host, *(f"{name} {v}" for name, v in record.versions.items())]
    return [fact for fact in facts if fact]


def _step1_section(run_dir: Path, summary: Step1Summary | None) -> StepSection:
    if summary is None:
        return StepSection("step1", "Step 1: baking", f"Unfinished: {how_far(run_dir)}")
    plots = RunPlots(_records(run_dir), summary)
    chosen = ("Training loss", "Accuracy over training", "Accuracy by strategy")
    return StepSection(
        "step1",
        "Step 1: baking",
        step1_lead(summary),
        step1_tiles(summary),
        page.sizes(summary.as_json()),
        canvas.draw_apart({name: plots.panels[name] for name in chosen}),
        Link("all of step 1", page.REPORT_HTML),
    )


def _step2_section(step1: Path, run_dir: Path, summary: Step2Summary | None) -> StepSection:
    title = "Step 2: learning to think"
    if summary is None:
        begun = run_dir.is_dir()
        return StepSection(
            "step2", title, f"Unfinished: {how_far(run_dir)}" if begun else "It was not started."
        )
    plots = ReinforcementPlots(_records(run_dir), summary)
    chosen = [name for name in plots.panels if name != "What a thought is worth"][:4]
    return StepSection(
        "step2",
        title,
        step2_lead(summary),
        step2_tiles(summary),
        page.sizes(summary.as_json()),
        canvas.draw_apart({name: plots.panels[name] for name in chosen}),
        Link("all of step 2", relative(run_dir / page.REPORT_HTML, step1)),
    )


def _records(run_dir: Path) -> list[Any]:
    path = run_dir / METRICS_NAME
    return read_metrics(path) if path.is_file() else []


def _lineage(
    step1: Path, step2: Path | None, one: Step1Summary | None, two: Step2Summary | None
) -> list[Card]:
    cards = []
    if one is not None:
        facts = {"source": one.champion, "weights sha256": one.champion_sha256}
        cards = [Card("Champion", facts), _model_card("Baked model", step1, one.as_json())]
    if step2 is not None and two is not None:
        cards.append(_model_card("Trained model", step2, two.as_json()))
    return cards


def _model_card(title: str, run_dir: Path, details: Mapping[str, Any]) -> Card:
    card = page.trained_card(title, run_dir, details)
    return Card(title, {**card.facts, "weights sha256": weights_of(run_dir)})


def _both_kinds(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some wrong answers and some right ones, of as many strategies as there are."""
    chosen: list[Mapping[str, Any]] = []
    for correct, most in ((False, _WRONG), (True, _RIGHT)):
        of_kind = [sample for sample in samples if bool(sample["correct"]) is correct]
        firsts = {sample["strategy"]: sample for sample in reversed(of_kind)}
        others = [sample for sample in of_kind if sample is not firsts[sample["strategy"]]]
        chosen += [*reversed(firsts.values()), *others][:most]
    return chosen


def _tables(
    record: PipelineRecord | None, one: Step1Summary | None, two: Step2Summary | None
) -> list[Table]:
    if record is None:
        known = {"step1": one, "step2": two}
        times = {name: s.seconds for name, s in known.items() if s is not None}
        rows = [Row(_STAGES[name], (format_seconds(t), "")) for name, t in times.items()]
        return [Table("times", ("stage", "time", ""), rows)]
    rows = [
        Row(
            _STAGES.get(name, name),
            (
                "unfinished" if stage.seconds is None else format_seconds(stage.seconds),
                "after a resume" if stage.resumed else "",
            ),
        )
        for name, stage in record.stages.items()
        if name != "report"
    ]
    settings = [Row(name, (_setting(value),)) for name, value in record.settings.items()]
    return [
        Table("times", ("stage", "time", ""), rows),
        Table("settings", ("settings that differ from the defaults", "value"), settings),
    ]


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
