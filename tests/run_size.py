"""How much room a run takes beside its model."""

from __future__ import annotations

from pathlib import Path

# What does not grow with the model.
_FLAT = (
    "data",
    "wandb",
    "metrics.jsonl",
    "samples.jsonl",
    "completions.jsonl",
    "report.html",
    "report.png",
)


def times_the_model(run: Path) -> float:
    """Bytes of a run's directory, but for data, logs and pages, in models as it exports them."""
    model = sum(map(_bytes, (run / "model").rglob("*")))
    return sum(_bytes_of(part) for part in run.iterdir() if part.name not in _FLAT) / model


def _bytes_of(part: Path) -> int:
    return _bytes(part) + sum(map(_bytes, part.rglob("*")))


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
