"""Rows of JSONL and Parquet files, each with where it stands, for messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distforge.errors import InputError


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of ``path`` (Parquet by its suffix, else one JSON object a line) and their places.

    Empty lines are passed over. A line ends at a line feed alone, so that a text may hold any other
    separator of Unicode.

    Raises:
        InputError: a file that cannot be read, or a line that is no JSON object.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield _parse(line, where), where


def _parquet_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({error})") from error
    for number, row in enumerate(rows, 1):
        yield row, f"{path}, row {number}"


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); mend the line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row
