"""Arithmetic word problems of one step, made from a seed: questions whose answer is one number.

Each comes behind a solved one, so that a chat model knows to answer with the number alone. Training
and held-out problems differ in their numbers, not in wording alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_NAMES = ("Ben", "Mia", "Tom", "Ana", "Leo", "Zoe", "Sam", "Eva", "Max", "Lily")
_THINGS = ("apples", "books", "coins", "stickers", "marbles", "cards", "shells", "pencils")
# Of numbers a > b: what is told, and the answer.
_TEMPLATES = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", lambda a, b: a + b),
    ("{n} has {a} {t} and gives {b} away. How many {t} are left?", lambda a, b: a - b),
    ("{n} has {a} {t} and {m} has {b}. How many {t} do they have together?", lambda a, b: a + b),
    ("{n} had {a} {t} and lost {b}. How many {t} does {n} have now?", lambda a, b: a - b),
)
_SOLVED = (
    {"role": "user", "content": "Kim has 6 cups and buys 3 more. How many cups does Kim have now?"},
    {"role": "assistant", "content": "9"},
)


def problems(seed: int, count: int, split: str) -> list[dict[str, Any]]:
    """``count`` different ones, ``prompt`` and ``answer``; a problem is held out by its numbers."""
    draw, found = random.Random(f"{seed}:{split}"), dict[str, dict[str, Any]]()
    while len(found) < count:
        a, b = draw.randint(11, 60), draw.randint(2, 10)
        if ((3 * a + b) % 5 == 0) != (split == "heldout"):
            continue
        text, solve = draw.choice(_TEMPLATES)
        name, other = draw.sample(_NAMES, 2)
        question = text.format(n=name, m=other, t=draw.choice(_THINGS), a=a, b=b)
        prompt = [
            {"role": "system", "content": "Answer with the number."},
            *_SOLVED,
            {"role": "user", "content": question},
        ]
        found[question] = {"prompt": prompt, "answer": str(solve(a, b))}
    return list(found.values())


def write_problems(directory: Path, seed: int, train: int, heldout: int) -> None:
    """``train.jsonl`` and ``heldout.jsonl``."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("heldout", heldout)):
        rows = problems(seed, count, split)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{split}.jsonl").write_text(lines)
