"""Rows of JSONL, Parquet and Arrow files, read one after another or by their number.

Nothing is kept of a file but where its rows begin, so that memory does not grow with their text.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distforge.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# Rows of a column file that become Python objects at once.
_BLOCK = 1024


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The rows of ``path`` (Parquet by its suffix, else one JSON object a line) and their places.

    Empty lines are passed over. A line ends at a line feed alone, so that a text may hold any other
    separator of Unicode.

    Raises:
        InputError: a file that cannot be read, or a line that is no JSON object.
    """
    return open_rows(path).scan()


def open_rows(path: Path) -> RowFile:
    """The file's rows: Parquet and Arrow by its suffix, else one JSON object a line."""
    kinds = {".parquet": ParquetRows, ".arrow": ArrowRows}
    return kinds.get(path.suffix, JsonLines)(path)


class RowFile(ABC):
    """The rows of one file. `scan` comes first: it reads all of them and says where each stands."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def scan(self) -> Iterator[tuple[Row, str]]:
        """All rows in order, each with its place for messages; `InputError` where one is none."""

    @abstractmethod
    def pick(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows of these numbers, which only grow."""

    @abstractmethod
    def where(self, number: int) -> str:
        """The place of a row, for messages."""


class JsonLines(RowFile):
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts = array("q")

    def scan(self) -> Iterator[tuple[Row, str]]:
        """See `RowFile.scan`."""
        starts, place = array("q"), 0
        with self._open() as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    starts.append(place)
                    where = f"{self.path}, line {number}"
                    yield _parse(line, where), where
                place += len(line)
        self._starts = starts

    def pick(self, numbers: Sequence[int]) -> Iterator[Row]:
        """See `RowFile.pick`."""
        with self._open() as file:
            for number in numbers:
                file.seek(self._starts[number])
                yield _parse(file.readline(), f"{self.path}, row {number + 1}")

    def where(self, number: int) -> str:
        """See `RowFile.where`."""
        with self._open() as file:
            before = file.read(self._starts[number]).count(b"\n")
        return f"{self.path}, line {before + 1}"

    def _open(self) -> Any:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error}") from error


class _Columns(RowFile):
    """A file of columns, in groups of rows that are loaded one at a time."""

    kind: str

    def where(self, number: int) -> str:
        """See `RowFile.where`."""
        return f"{self.path}, row {number + 1}"

    def scan(self) -> Iterator[tuple[Row, str]]:
        """See `RowFile.scan`."""
        rows = chain.from_iterable(batch.to_pylist() for batch in self._tried(self._batches))
        yield from ((row, self.where(number)) for number, row in enumerate(rows))

    def pick(self, numbers: Sequence[int]) -> Iterator[Row]:
        """See `RowFile.pick`."""
        if len(numbers) < 2:
            yield from self._single(numbers)
            return
        start = done = 0
        for batch in self._tried(self._batches):
            upto = bisect_left(numbers, start + len(batch), lo=done)
            for number in numbers[done:upto]:
                yield from batch.slice(number - start, 1).to_pylist()
            start, done = start + len(batch), upto
            if done == len(numbers):
                return

    def _single(self, numbers: Sequence[int]) -> Iterator[Row]:
        ends = list(accumulate(self._sizes()))
        for number in numbers:
            group = bisect_right(ends, number)
            start = ends[group - 1] if group else 0
            yield self._load(group).slice(number - start, 1).to_pylist()[0]

    def _tried(self, batches: Callable[[], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        try:
            yield from batches()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{self.path} is not a readable {self.kind} file ({error}); write it again"
            ) from error

    @abstractmethod
    def _batches(self) -> Iterator[pa.RecordBatch]: ...

    @abstractmethod
    def _sizes(self) -> list[int]: ...

    @abstractmethod
    def _load(self, group: int) -> pa.Table: ...


class ParquetRows(_Columns):
    """A Parquet file."""

    kind = "Parquet"

    def _batches(self) -> Iterator[pa.RecordBatch]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=_BLOCK)

    def _sizes(self) -> list[int]:
        from pyarrow import parquet

        about = parquet.read_metadata(self.path)
        return [about.row_group(n).num_rows for n in range(about.num_row_groups)]

    def _load(self, group: int) -> pa.Table:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            return file.read_row_group(group)


class ArrowRows(_Columns):
    """An Arrow stream, as `datasets.save_to_disk` writes it; mapped into memory, not loaded."""

    kind = "Arrow"

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        return pa.ipc.open_stream(pa.memory_map(os.fspath(self.path))).read_all()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._table.to_batches(max_chunksize=_BLOCK)

    def _sizes(self) -> list[int]:
        return [len(self._table)]

    def _load(self, group: int) -> pa.Table:
        return self._table


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); correct the line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row
