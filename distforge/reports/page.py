"""What the pages of every report share: what stands on them, and the templates that show it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.activity import format_seconds
from distforge.registry.manifest import MANIFEST_NAME, manifest_id
from distforge.reports.page_parts import Badge, Card, Link, Table
from distforge.reports.verdict_section import VerdictSection
from distforge.telemetry.jsonl import METRICS_NAME, read_metrics

REPORT_HTML, REPORT_PNG = "report.html", "report.png"
_CONFIG_NAME = "config.toml"


@dataclass(frozen=True)
class Page:
    """What a step's report shows, all of it plain text, which the template escapes.

    Attributes:
        title: after which the run's name follows.
        badges: beside the title.
        lead: what the run shows in a sentence or two.
        tiles: (value, label) of the numbers to be seen first.
        quiet: what else there is in numbers, in a line.
        panels: SVG elements by what they show.
        tables: what was reached.
        lineage: from where the model came to what was made of it.
        samples: what ``read_samples`` gave.
        details: all else that the summary says.
        links: to the reports beside this one.
        verdict: whether the thoughts are theatre.
    """

    title: str
    badges: Sequence[Badge]
    lead: str
    tiles: Sequence[tuple[str, str]] = ()
    quiet: Sequence[str] = ()
    panels: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    lineage: Sequence[Card] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    links: Sequence[Link] = ()
    verdict: VerdictSection | None = None


def render(template: str, **content: Any) -> str:
    """A page of a template beside this file, self-contained.

    The plots alone are put in as they are; all else is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distforge.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["steps"] = _a_step_a_line
    return environment.get_template(template).render(**content)


def write(run_dir: Path, page: Page, overview: bytes | None = None) -> Path:
    """Write a step's page, and a PNG beside it where one is given; the page's path.

    Both appear whole or not at all.
    """
    path, config = run_dir / REPORT_HTML, run_dir / _CONFIG_NAME
    text = render(
        "report.html.jinja",
        page=page,
        title=f"{page.title}: {run_dir.resolve().name}",
        config=config.read_text("utf-8") if config.exists() else "(no config.toml)",
    )
    pictures = {} if overview is None else {run_dir / REPORT_PNG: overview}
    durable.write_files({**pictures, path: text.encode()})
    return path


def trained_card(title: str, run_dir: Path, details: Mapping[str, Any]) -> Card:
    """The lineage card of the model that a run made."""
    model = run_dir / "model"
    facts = {
        "registry": details.get("registry_version"),
        "directory": details.get("model_dir"),
        "manifest sha256": manifest_id(model) if (model / MANIFEST_NAME).exists() else None,
    }
    return Card(title, facts)


def sizes(details: Mapping[str, Any]) -> list[str]:
    """What the run cost, as far as its summary says: episodes, steps, size, time."""
    texts = [
        f"{count:,} {label}"
        for name, label in (
            ("episodes", "episodes"),
            ("steps", "optimizer steps"),
            ("parameters", "parameters"),
        )
        if isinstance(count := details.get(name), int)
    ]
    if isinstance(seconds := details.get("seconds"), int | float):
        texts.append(f"{format_seconds(seconds)} of time")
    return texts


def when(run_dir: Path) -> list[str]:
    """When a run last reported, as a line of a page; nothing where it never did."""
    path = run_dir / METRICS_NAME
    records = read_metrics(path) if path.is_file() else []
    return [f"last record {minute(records[-1].time)}"] if records else []


def minute(time: str) -> str:
    """``2026-01-31T12:00:00.000Z`` as ``2026-01-31 12:00 UTC``."""
    return f"{time[:10]} {time[11:16]} UTC"


def _a_step_a_line(text: str) -> str:
    """A thought with every part of it on a line of its own, as `distforge data show` prints it."""
    return re.sub(r"(?<!\n)(?=<[a-z])", "\n", text).strip()
