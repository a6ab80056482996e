"""Arithmetic word problems of one step, made from a seed: questions whose answer is one number.

They are what a chat model of 100M parameters answers now and then. Training and held-out problems
differ in their numbers, not in wording alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

_NAMES = ("Ben", "Mia", "Tom", "Ana", "Leo", "Zoe", "Sam", "Eva", "Max", "Lily")
_THINGS = ("apples", "books", "coins", "stickers", "marbles", "cards", "shells", "pencils")
# Of numbers a > b: what is told, and the answer.
_TEMPLATES = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", lambda a, b: a + b),
    ("{n} has {a} {t} and gives {b} away. How many {t} are left?", lambda a, b: a - b),
    ("{n} has {a} {t} and {m} has {b}. How many {t} do they have together?", lambda a, b: a + b),
    ("{n} had {a} {t} and lost {b}. How many {t} does {n} have now?", lambda a, b: a - b),
)
LARGEST = 12


def problems(seed: int, count: int, split: str) -> list[dict[str, str]]:
    """``count`` different ones, ``question`` and ``answer``; its numbers hold a problem out."""
    draw, found = random.Random(f"{seed}:{split}"), dict[str, dict[str, str]]()
    while len(found) < count:
        a = draw.randint(3, LARGEST)
        b = draw.randint(2, a - 1)
        if ((3 * a + b) % 5 == 0) != (split == "heldout"):
            continue
        text, solve = draw.choice(_TEMPLATES)
        name, other = draw.sample(_NAMES, 2)
        question = text.format(n=name, m=other, t=draw.choice(_THINGS), a=a, b=b)
        found[question] = {"question": question, "answer": str(solve(a, b))}
    return list(found.values())


def write_problems(directory: Path, seed: int, train: int, heldout: int) -> None:
    """``train.jsonl`` and ``heldout.jsonl``."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("heldout", heldout)):
        rows = problems(seed, count, split)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{split}.jsonl").write_text(lines, encoding="utf-8")
