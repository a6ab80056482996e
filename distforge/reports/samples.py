"""``samples.jsonl``: what a model wrote on held-out questions, and what was made of it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.errors import InputError

SAMPLES_NAME = "samples.jsonl"
_MAX_SAMPLES = 28
_FIELDS = ("strategy", "question", "generated", "answer", "correct")


def write_samples(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes all samples: of each the strategy, question, prompt, generated text, answer, expected
    answer, verdict ("right" or "wrong") and why."""
    durable.write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def read_samples(path: Path) -> list[dict[str, Any]]:
    """At most 28 of the file's samples, the same number a strategy; none where no file is.

    A sample has ``strategy``, ``question``, ``generated`` and ``answer`` (text; the expected one),
    and ``correct``.

    Raises:
        InputError: a line is malformed; the message has its number.
    """
    if not path.exists():
        return []
    by_strategy: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if line.strip():
            sample = _parse(path, number, line)
            by_strategy.setdefault(sample["strategy"], []).append(sample)
    per_strategy = max(1, _MAX_SAMPLES // max(len(by_strategy), 1))
    return [sample for samples in by_strategy.values() for sample in samples[:per_strategy]]


def wrong_first(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The samples with the wrong answers in front, from which there is most to learn."""
    return sorted(samples, key=lambda sample: bool(sample["correct"]))


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON ({error}); remove the line") from None
    if isinstance(sample, dict) and "verdict" in sample:
        correct = sample["verdict"] == "right"
        sample = {**sample, "answer": sample.get("expected"), "correct": correct}
    if not isinstance(sample, dict) or any(name not in sample for name in _FIELDS):
        raise InputError(
            f"{path}, line {number} lacks one of {', '.join(_FIELDS)}; remove the line"
        )
    return {name: sample[name] if name == "correct" else str(sample[name]) for name in _FIELDS}
