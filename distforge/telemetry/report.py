"""``report.html`` and ``report.png``: what a run reached, to be looked at without a server."""

import base64
import html
import json
import os
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from distforge.errors import InputError
from distforge.registry.manifest import MANIFEST_NAME, manifest_id
from distforge.telemetry.console import format_seconds
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics
from distforge.telemetry.plots import RunPlots
from distforge.telemetry.summary import SUMMARY_NAME, BakingSummary, read_summary
from distforge.telemetry.tables import AccuracyRow, UsageRow, accuracy_rows, percent, usage_rows

REPORT_HTML, REPORT_PNG = "report.html", "report.png"
CONFIG_NAME, SAMPLES_NAME = "config.toml", "samples.jsonl"
_MAX_SAMPLES = 28
_SAMPLE_FIELDS = ("strategy", "question", "generated", "answer", "correct")
# Shown in a place of their own, or of no use to a reader.
_ELSEWHERE = {"champion", "champion_sha256", "registry_version", "shortfalls", "phase", "step"}


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` (self-contained) and ``report.png`` into a run's directory.

    Reads ``summary.json`` and ``metrics.jsonl``, and, where they are, ``config.toml``,
    ``samples.jsonl`` (``strategy, question, generated, answer, correct``) and the model's manifest.
    Both files appear whole or not at all.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: ``summary.json`` or ``metrics.jsonl`` is missing, or a file is malformed.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / SUMMARY_NAME)
    plots = RunPlots(read_metrics(run_dir / METRICS_NAME), summary)
    samples = _read_samples(run_dir / SAMPLES_NAME)
    page = _page(run_dir, summary, plots, samples)
    _replace(run_dir / REPORT_PNG, plots.overview())
    _replace(run_dir / REPORT_HTML, page.encode("utf-8"))
    return run_dir / REPORT_HTML


def _page(
    run_dir: Path, summary: BakingSummary, plots: RunPlots, samples: list[dict[str, Any]]
) -> str:
    template = Template(
        resources.files("distforge.telemetry").joinpath(REPORT_HTML).read_text("utf-8")
    )
    config = run_dir / CONFIG_NAME
    return template.substitute(
        title=_escape(f"Step 1: {run_dir.resolve().name}"),
        verdict="converged" if summary.converged else "not converged",
        verdict_class="good" if summary.converged else "bad",
        lead=_escape(_lead(summary)),
        tiles=_tiles(summary),
        plots="".join(_figure(title, png) for title, png in plots.panels().items()),
        accuracy=_accuracy_table(summary),
        usage=_usage_table(summary),
        lineage=_lineage(run_dir, summary),
        samples=_samples(samples),
        details=_details(summary),
        config=_escape(config.read_text("utf-8") if config.exists() else "(no config.toml)"),
    )


def _lead(summary: BakingSummary) -> str:
    if summary.converged:
        return (
            "Every target is met: free, greedy generations from the question alone, on held-out "
            "questions, judged by the checker."
        )
    shortfalls = summary.details.get("shortfalls") or ["a target was missed, see the tables"]
    return f"Not every target is met: {'; '.join(map(str, shortfalls))}."


def _tiles(summary: BakingSummary) -> str:
    details = summary.details
    numbers = [
        (percent(summary.accuracy_overall), "accuracy, baked"),
        (percent(summary.champion_accuracy), "accuracy, champion"),
    ]
    if isinstance(prompted := details.get("champion_prompted_accuracy"), int | float):
        numbers.append((percent(prompted), "champion with prompts"))
    for key, label in (("steps", "optimizer steps"), ("parameters", "parameters")):
        if isinstance(count := details.get(key), int):
            numbers.append((f"{count:,}", label))
    if isinstance(seconds := details.get("seconds"), int | float):
        numbers.append((format_seconds(seconds), "time"))
    return "".join(
        f'<div class="card tile"><b>{_escape(value)}</b><span>{_escape(label)}</span></div>'
        for value, label in numbers
    )


def _figure(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="card"><img alt="{_escape(title)}" src="data:image/png;base64,{data}">'
        "</figure>"
    )


def _accuracy_table(summary: BakingSummary) -> str:
    head = _heading("strategy", "champion", "baked", "target", "met")
    return head + "".join(_accuracy_row(row) for row in accuracy_rows(summary))


def _accuracy_row(row: AccuracyRow) -> str:
    opening = '<tr class="total">' if row.is_total else "<tr>"
    cells = (percent(row.champion), percent(row.baked), f"≥ {percent(row.target)}")
    return f"{opening}<td>{_escape(row.name)}</td>{_numbers(*cells)}{_met(row.met)}</tr>"


def _usage_table(summary: BakingSummary) -> str:
    head = _heading("token usage", "baked", "target", "met")
    return head + "".join(_usage_row(row) for row in usage_rows(summary))


def _usage_row(row: UsageRow) -> str:
    cells = _numbers(percent(row.baked), f"> {percent(row.target)}")
    return f"<tr><td>{_escape(row.name)}</td>{cells}{_met(row.met)}</tr>"


def _heading(first: str, *numbers: str) -> str:
    cells = "".join(f'<th class="number">{_escape(name)}</th>' for name in numbers)
    return f"<tr><th>{_escape(first)}</th>{cells}</tr>"


def _numbers(*cells: str) -> str:
    return "".join(f'<td class="number">{_escape(cell)}</td>' for cell in cells)


def _met(met: bool) -> str:
    word = "yes" if met else "no"
    return f'<td class="number {word}">{word}</td>'


def _lineage(run_dir: Path, summary: BakingSummary) -> str:
    details = summary.details
    model = run_dir / "model"
    identity = manifest_id(model) if (model / MANIFEST_NAME).exists() else None
    champion = _lineage_card(
        "Champion",
        [("source", details.get("champion")), ("sha256", details.get("champion_sha256"))],
    )
    baked = _lineage_card(
        "Baked model",
        [
            ("registry", details.get("registry_version")),
            ("directory", details.get("model_dir")),
            ("manifest sha256", identity),
        ],
    )
    return f'{champion}<span class="arrow" aria-hidden="true">→</span>{baked}'


def _lineage_card(title: str, facts: list[tuple[str, Any]]) -> str:
    lines = "".join(
        f'<p>{_escape(name)}: <code class="hash">{_escape(str(value))}</code></p>'
        for name, value in facts
        if value
    )
    return f'<div class="card"><h3>{_escape(title)}</h3>{lines or "<p>not recorded</p>"}</div>'


def _details(summary: BakingSummary) -> str:
    return "".join(
        f"<tr><td>{_escape(name)}</td><td><code>{_escape(str(value))}</code></td></tr>"
        for name, value in sorted(summary.details.items())
        if name not in _ELSEWHERE
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    if not samples:
        return ""
    cards = "".join(_sample(sample) for sample in samples)
    return f'<h2>What it writes</h2><section class="samples" id="samples">{cards}</section>'


def _sample(sample: dict[str, Any]) -> str:
    mark = (
        '<span class="yes">right</span>' if sample["correct"] else '<span class="no">wrong</span>'
    )
    return (
        f'<div class="card"><h3>{_escape(sample["strategy"])} · {mark}</h3>'
        f"<pre>{_escape(sample['question'])}</pre><pre>{_escape(sample['generated'])}</pre>"
        f"<p>expected: <code>{_escape(sample['answer'])}</code></p></div>"
    )


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """The file's samples, at most ``_MAX_SAMPLES`` of them, the strategies in turn."""
    if not path.exists():
        return []
    by_strategy: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if line.strip():
            sample = _parse_sample(path, number, line)
            by_strategy.setdefault(sample["strategy"], []).append(sample)
    per_strategy = max(1, _MAX_SAMPLES // max(len(by_strategy), 1))
    return [sample for samples in by_strategy.values() for sample in samples[:per_strategy]]


def _parse_sample(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON ({error}); remove the line") from None
    if not isinstance(sample, dict) or any(name not in sample for name in _SAMPLE_FIELDS):
        raise InputError(
            f"{path}, line {number} lacks one of {', '.join(_SAMPLE_FIELDS)}; remove the line"
        )
    return {
        name: sample[name] if name == "correct" else str(sample[name]) for name in _SAMPLE_FIELDS
    }


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(content)
    os.replace(partial, path)
