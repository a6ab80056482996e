"""Rows of a benchmark's files: JSONL or Parquet, one file or a directory of splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from distforge.errors import InputError

_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row and where it stands, for messages."""

    values: dict[str, Any]
    where: str


def read_splits(path: str, items: int, shots: int) -> tuple[list[Row], list[Row]]:
    """Rows that are asked, ``items`` or (0) all, and ``shots`` that serve as solved examples.

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
    return asked[: items or None], examples


def _files(directory: Path, split: str) -> list[Path]:
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix in _SUFFIXES and split in file.stem.lower()
    )


def _read(file: Path) -> list[Row]:
    try:
        if file.suffix == ".parquet":
            values = pyarrow.parquet.read_table(file).to_pylist()
            return [Row(value, f"{file}, row {number}") for number, value in enumerate(values)]
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    return [_parse(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line]


def _parse(line: str, where: str) -> Row:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON ({error}); expected one object a line") from error
    if not isinstance(values, dict):
        raise InputError(f"{where} is a {type(values).__name__}; expected an object")
    return Row(values, where)
