"""``completions.jsonl``: what the model wrote on the way, and what it earned with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distforge import durable
from distforge.reports.completions import COMPLETIONS_NAME


@dataclass(frozen=True)
class Completion:
    """One answer. rewards: by function, None where it said nothing; ``reward`` is their weighted
    sum. finished: whether the model ended it, and not the cap."""

    prompt: str
    completion: str
    rewards: Mapping[str, float | None]
    reward: float
    advantage: float
    finished: bool


def as_table(completions: Sequence[Completion]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of them, a column for each reward function."""
    names = list(completions[0].rewards)
    parts = [f"reward of {name}" for name in names]
    columns = ["prompt", "completion", *parts, "reward", "advantage", "finished"]
    return columns, [
        [
            one.prompt,
            one.completion,
            *(one.rewards[name] for name in names),
            one.reward,
            one.advantage,
            one.finished,
        ]
        for one in completions
    ]


def keep_completions(completions: Sequence[Completion], step: int, directory: Path) -> None:
    """Append them, a line each."""
    with durable.AppendOnly(directory / COMPLETIONS_NAME, synced=False) as lines:
        for completion in completions:
            lines.write(json.dumps({"step": step, **asdict(completion)}, ensure_ascii=False))
