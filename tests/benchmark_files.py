"""A few rows of GSM8K and of ARC, laid out as the public files are, and a scripted answerer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GSM8K_ROWS: list[dict[str, Any]] = [
    {"question": "Natalia sold 48 clips and then half as many. How many?",
     "answer": "She sold 48/2 = <<48/2=24>>24 more.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"},
    {"question": "A house costs 1,000 and a shed 250. Both?", "answer": "1000+250\n#### 1,250"},
    {"question": "It was 3 and fell by 5. Now?", "answer": "3-5=-2\n#### -2"},
]  # fmt: skip
ARC_ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "question": "Which is alive?",
        "choices": {"text": ["a rock", "a tree", "a very long iron bar"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "b",
        "question": "Which is cold?",
        "choices": {"text": ["ice", "fire", "the sun", "steam"], "label": ["1", "2", "3", "4"]},
        "answerKey": "1",
    },
]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Scripted:
    """Says what it is told to, has room for so many characters, and keeps what it was asked."""

    def __init__(self, says: Any = "", room: int = 10_000) -> None:
        self.says, self.room = says, room
        self.asked: list[str] = []

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        return len(asked) + max(map(len, answers), default=0) <= self.room

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        self.asked += asked
        return [self.says for _ in asked]

    def log_likelihoods(
        self, asked: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        self.asked += asked
        return [[self.says[text] for text in texts] for texts in answers]
