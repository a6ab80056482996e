"""Rows of a benchmark's files: JSONL or Parquet, one file or a directory of splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from distforge.data.rows import read_rows
from distforge.data.splits import saved_splits
from distforge.errors import InputError

_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row and where it stands, for messages."""

    values: dict[str, Any]
    where: str


def read_splits(path: str, limit: int, shots: int) -> tuple[list[Row], list[Row]]:
    """Rows that are asked, ``limit`` or (0) all, and ``shots`` that serve as solved examples.

    Args:
        path: a file; a directory with files test and train, by these names, numbered in parts, or
            behind another ("ARC-Easy-Test.jsonl"); or what ``datasets.save_to_disk`` wrote.

    Raises:
        InputError: nothing there, a file that is not what its name says, or too few rows.
    """
    source = Path(path).expanduser()
    if source.is_file():
        rows = list(_read(source))
        cut = max(0, len(rows) - shots)
        asked, examples = rows[:cut], rows[cut:]
    elif source.is_dir():
        asked = [row for file in _files(source, "test") for row in _read(file)]
        train = _files(source, "train") if shots else []
        examples = list(islice((row for file in train for row in _read(file)), shots))
    else:
        raise InputError(f"there is no benchmark at {path!r}; name a file or a directory")
    if not asked or len(examples) < shots:
        raise InputError(
            f"{path!r} gives {len(asked)} questions and {len(examples)} solved examples; expected "
            f"at least one and {shots}: in a directory, files called test and train "
            f"({', '.join(_SUFFIXES)})"
        )
    return asked[: limit or None], examples


def _files(directory: Path, split: str) -> list[Path]:
    if saved := saved_splits(directory):
        return saved.get(split, [])
    # A name's end alone: neither latest.jsonl nor GSM8K's test_socratic.jsonl is the test split.
    name = re.compile(rf"(.+[-_. ])?{split}(?P<part>-\d{{5}}-of-\d{{5}})?", re.IGNORECASE)
    found = [
        (file, match["part"])
        for file in sorted(directory.iterdir())
        if file.suffix in _SUFFIXES and (match := name.fullmatch(file.stem))
    ]
    if len(found) > 1 and not all(part for _, part in found):
        raise InputError(
            f"{directory} has several files of the split {split}: "
            f"{', '.join(file.name for file, _ in found)}; keep one, or name a file"
        )
    return [file for file, _ in found]


def _read(file: Path) -> Iterator[Row]:
    return (Row(values, where) for values, where in read_rows(file))
