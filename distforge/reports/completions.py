"""What a model wrote while it was trained, as a report shows it."""

from __future__ import annotations

import json
from pathlib import Path

from distforge import durable
from distforge.reports.page_parts import Row, Table

COMPLETIONS_NAME = "completions.jsonl"
_SHOWN = 24
_LONGEST = 300


def completions_table(path: Path) -> list[Table]:
    """A table of the latest ones; none where there is no file."""
    if not path.is_file():
        return []
    latest = [json.loads(line) for line in durable.read_lines(path)[-_SHOWN:]]
    rows = [
        Row(
            str(found["step"]),
            (
                _short(found["prompt"]),
                _short(found["completion"]),
                ", ".join(f"{name} {_number(value)}" for name, value in found["rewards"].items()),
                _number(found["reward"]),
                f"{found['advantage']:+.2f}",
                "" if found["finished"] else "cut",
            ),
            opens=number == 0 or found["prompt"] != latest[number - 1]["prompt"],
        )
        for number, found in enumerate(latest)
    ]
    headings = ("step", "question", "written", "rewards", "reward", "advantage", "")
    return [Table("completions", headings, rows)] if rows else []


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
