"""What the pages of every report share: one template, and the pieces that fill it."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from distforge.registry.manifest import MANIFEST_NAME, manifest_id
from distforge.telemetry.console import format_seconds

REPORT_HTML, REPORT_PNG = "report.html", "report.png"
_CONFIG_NAME = "config.toml"


@dataclass(frozen=True)
class Page:
    """A report as HTML fragments (made by the functions of this module) and plain text.

    Attributes:
        title: plain text, after which the run's name follows.
        badges: fragments beside the title.
        lead: plain text, what the run shows in a sentence or two.
        tiles: (value, label) of the numbers to be seen first, plain text.
        panels: PNGs by what they show.
        tables: fragments.
        lineage: fragments, from where the model came to what was made of it.
        samples: what ``read_samples`` gave.
        details: all else that the summary says.
    """

    title: str
    badges: Sequence[str]
    lead: str
    tiles: Sequence[tuple[str, str]]
    panels: Mapping[str, bytes]
    tables: Sequence[str]
    lineage: Sequence[str]
    samples: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]


def render(run_dir: Path, page: Page) -> str:
    """The whole page as self-contained HTML, with the run's name and its ``config.toml``."""
    template = Template(
        resources.files("distforge.telemetry").joinpath(REPORT_HTML).read_text("utf-8")
    )
    config = run_dir / _CONFIG_NAME
    return template.substitute(
        title=_escape(f"{page.title}: {run_dir.resolve().name}"),
        badges="".join(page.badges),
        lead=_escape(page.lead),
        tiles="".join(_tile(*tile) for tile in page.tiles),
        plots="".join(_figure(title, png) for title, png in page.panels.items()),
        tables="".join(page.tables),
        lineage='<span class="arrow" aria-hidden="true">→</span>'.join(page.lineage),
        samples=_samples(page.samples),
        details="".join(
            f"<tr><td>{_escape(name)}</td><td><code>{_escape(str(value))}</code></td></tr>"
            for name, value in sorted(page.details.items())
        ),
        config=_escape(config.read_text("utf-8") if config.exists() else "(no config.toml)"),
    )


def badge(identity: str, text: str, is_good: bool | None) -> str:
    """A coloured word beside the title; grey where it is neither good nor bad (None)."""
    tone = "neutral" if is_good is None else "good" if is_good else "bad"
    return f'<span class="badge {tone}" id="{identity}">{_escape(text)}</span>'


def table(identity: str, headings: Sequence[str], rows: Sequence[str]) -> str:
    """A table on a card; ``rows`` are made by ``row``. The first column is text."""
    first, *numbers = headings
    cells = "".join(f'<th class="number">{_escape(name)}</th>' for name in numbers)
    head = f"<tr><th>{_escape(first)}</th>{cells}</tr>"
    return f'<div class="card"><table id="{identity}">{head}{"".join(rows)}</table></div>'


def row(
    name: str,
    numbers: Sequence[str],
    met: bool | None = None,
    *,
    opens: bool = False,
    is_total: bool = False,
) -> str:
    """A row of a table, plain text in each cell.

    Args:
        name: the first cell.
        numbers: the others.
        met: where given, a last cell that says yes or no.
        opens: whether it begins a group of rows, set off by a heavier line.
        is_total: whether it sums up, in bold.
    """
    classes = " ".join(word for word, on in (("opens", opens), ("total", is_total)) if on)
    opening = f'<tr class="{classes}">' if classes else "<tr>"
    cells = "".join(f'<td class="number">{_escape(number)}</td>' for number in numbers)
    if met is not None:
        word = "yes" if met else "no"
        cells += f'<td class="number {word}">{word}</td>'
    return f"{opening}<td>{_escape(name)}</td>{cells}</tr>"


def lineage_card(title: str, facts: Mapping[str, Any]) -> str:
    """What a model is known by; facts that are empty are left out."""
    lines = "".join(
        f'<p>{_escape(name)}: <code class="hash">{_escape(str(value))}</code></p>'
        for name, value in facts.items()
        if value
    )
    return f'<div class="card"><h3>{_escape(title)}</h3>{lines or "<p>not recorded</p>"}</div>'


def trained_card(title: str, run_dir: Path, details: Mapping[str, Any]) -> str:
    """The lineage card of the model that a run made."""
    model = run_dir / "model"
    facts = {
        "registry": details.get("registry_version"),
        "directory": details.get("model_dir"),
        "manifest sha256": manifest_id(model) if (model / MANIFEST_NAME).exists() else None,
    }
    return lineage_card(title, facts)


def size_tiles(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tiles of what the run cost, as far as its summary says: episodes, steps, size, time."""
    tiles = []
    for name, label in (
        ("episodes", "episodes"),
        ("steps", "optimizer steps"),
        ("parameters", "parameters"),
    ):
        if isinstance(count := details.get(name), int):
            tiles.append((f"{count:,}", label))
    if isinstance(seconds := details.get("seconds"), int | float):
        tiles.append((format_seconds(seconds), "time"))
    return tiles


def _tile(value: str, label: str) -> str:
    return f'<div class="card tile"><b>{_escape(value)}</b><span>{_escape(label)}</span></div>'


def _figure(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    image = f'<img alt="{_escape(title)}" src="data:image/png;base64,{data}">'
    return f'<figure class="card">{image}</figure>'


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    cards = "".join(_sample(sample) for sample in samples)
    return f'<h2>What it writes</h2><section class="samples" id="samples">{cards}</section>'


def _sample(sample: Mapping[str, Any]) -> str:
    word = (
        '<span class="yes">right</span>' if sample["correct"] else '<span class="no">wrong</span>'
    )
    return (
        f'<div class="card"><h3>{_escape(sample["strategy"])} · {word}</h3>'
        f"<pre>{_escape(sample['question'])}</pre><pre>{_escape(sample['generated'])}</pre>"
        f"<p>expected: <code>{_escape(sample['answer'])}</code></p></div>"
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
