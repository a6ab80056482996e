"""Rows of a benchmark's files: JSONL or Parquet, one file or a directory of splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge.data.rows import read_rows
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
        path: a file, or a directory whose files have "test" and "train" in their names.

    Raises:
        InputError: nothing there, a file that is not what its name says, or too few rows.
    """
    source = Path(path).expanduser()
    if source.is_file():
        rows = _read(source)
        cut = max(0, len(rows) - shots)
        asked, examples = rows[:cut], rows[cut:]
    elif source.is_dir():
        asked = [row for file in _files(source, "test") for row in _read(file)]
        train = _files(source, "train") if shots else []
        examples = [row for file in train for row in _read(file)][:shots]
    else:
        raise InputError(f"there is no benchmark at {path!r}; name a file or a directory")
    if not asked or len(examples) < shots:
        raise InputError(
            f"{path!r} gives {len(asked)} questions and {len(examples)} solved examples; expected "
            f"at least one and {shots}: in a directory, files with 'test' and with 'train' in "
            f"their names ({', '.join(_SUFFIXES)})"
        )
    return asked[: limit or None], examples


def _files(directory: Path, split: str) -> list[Path]:
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix in _SUFFIXES and split in file.stem.lower()
    )


def _read(file: Path) -> list[Row]:
    return [Row(values, where) for values, where in read_rows(file)]
