"""What the pages of every report share: what stands on them, and the template that shows it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.registry.manifest import MANIFEST_NAME, manifest_id
from distforge.telemetry.console import format_seconds

REPORT_HTML, REPORT_PNG = "report.html", "report.png"
_CONFIG_NAME = "config.toml"
_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Badge:
    """A coloured word beside the title; grey where it is neither good nor bad (None)."""

    identity: str
    text: str
    is_good: bool | None

    @property
    def tone(self) -> str:
        """Its class in the page's style."""
        return {None: "neutral", True: "good", False: "bad"}[self.is_good]


@dataclass(frozen=True)
class Row:
    """A row of a table, plain text in each cell.

    Attributes:
        name: the first cell.
        numbers: the others.
        met: where given, a last cell that says yes or no.
        opens: whether it begins a group of rows, set off by a heavier line.
        is_total: whether it sums up, in bold.
    """

    name: str
    numbers: Sequence[str]
    met: bool | None = None
    opens: bool = False
    is_total: bool = False


@dataclass(frozen=True)
class Table:
    """A table on a card. The first column is text."""

    identity: str
    headings: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Card:
    """What a model is known by; facts that are empty are left out."""

    title: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """What a report shows, all of it plain text, which the template escapes.

    Attributes:
        title: after which the run's name follows.
        badges: beside the title.
        lead: what the run shows in a sentence or two.
        tiles: (value, label) of the numbers to be seen first.
        panels: PNGs by what they show.
        tables: what was reached.
        lineage: from where the model came to what was made of it.
        samples: what ``read_samples`` gave.
        details: all else that the summary says.
    """

    title: str
    badges: Sequence[Badge]
    lead: str
    tiles: Sequence[tuple[str, str]]
    panels: Mapping[str, bytes]
    tables: Sequence[Table]
    lineage: Sequence[Card]
    samples: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]


def render(run_dir: Path, page: Page) -> str:
    """The whole page as self-contained HTML, with the run's name and its ``config.toml``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distforge.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    config = run_dir / _CONFIG_NAME
    return environment.get_template(_TEMPLATE).render(
        page=page,
        title=f"{page.title}: {run_dir.resolve().name}",
        config=config.read_text("utf-8") if config.exists() else "(no config.toml)",
    )


def write(run_dir: Path, page: Page, overview: bytes) -> Path:
    """Write the page and a PNG beside it, both whole or not at all; the page's path."""
    path = run_dir / REPORT_HTML
    durable.write_files({run_dir / REPORT_PNG: overview, path: render(run_dir, page).encode()})
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
