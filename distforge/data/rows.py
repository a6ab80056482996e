"""Rows of JSONL, CSV, Parquet and Arrow files, read one after another or by their number.

Nothing is kept of a file but where its rows begin, so that memory does not grow with their text.
"""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from distforge.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

# Rows of a column file that become Python objects at once.
_BLOCK = 1024


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The rows of ``path``, see `open_rows`, and their places.

    Empty lines are passed over. A line ends at a line feed alone, so that a text may hold any other
    separator of Unicode.

    Raises:
        InputError: a file that cannot be read, or a line that is no JSON object.
    """
    return open_rows(path).scan()


def open_rows(path: Path) -> RowFile:
    """The file's rows: Parquet, Arrow and CSV by its suffix, else one JSON object a line."""
    kinds: dict[str, Callable[[Path], RowFile]] = {
        ".parquet": ParquetRows,
        ".arrow": ArrowRows,
        ".csv": CsvRows,
    }
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


class _Place:
    """How far a file is read: bytes and lines."""

    def __init__(self) -> None:
        self.start = self.line = 0


class JsonLines(RowFile):
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts = array("q")

    def scan(self) -> Iterator[tuple[Row, str]]:
        """See `RowFile.scan`."""
        starts, place = array("q"), 0
        with _open(self.path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    starts.append(place)
                    where = f"{self.path}, line {number}"
                    yield _parse(line, where), where
                place += len(line)
        self._starts = starts

    def pick(self, numbers: Sequence[int]) -> Iterator[Row]:
        """See `RowFile.pick`."""
        with _open(self.path) as file:
            for number in numbers:
                file.seek(self._starts[number])
                yield _parse(file.readline(), f"{self.path}, row {number + 1}")

    def where(self, number: int) -> str:
        """See `RowFile.where`."""
        with _open(self.path) as file:
            before = file.read(self._starts[number]).count(b"\n")
        return f"{self.path}, line {before + 1}"


class CsvRows(RowFile):
    """A table of text in UTF-8, its first line the names of the columns, in any letter case.

    Cells are parted by the comma, semicolon or tab that the first line has most of. Empty cells
    are left out of a row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts = array("q")
        self._lines = array("q")
        self._names: list[str] = []
        self._delimiter = ","

    def scan(self) -> Iterator[tuple[Row, str]]:
        """See `RowFile.scan`."""
        starts, numbers = array("q"), array("q")
        with _open(self.path) as file:
            place = _Place()
            header = next(self._decoded(file, place), "")
            self._delimiter = max(",;\t", key=header.count)
            self._names = [
                name.strip().casefold() for name in next(self._cells([header], place), [])
            ]
            records = self._cells(self._decoded(file, place), place)
            while True:
                start, line = place.start, place.line + 1
                cells = next(records, None)
                if cells is None:
                    break
                if any(cells):
                    starts.append(start)
                    numbers.append(line)
                    where = f"{self.path}, line {line}"
                    yield self._row(cells, where), where
        self._starts, self._lines = starts, numbers

    def pick(self, numbers: Sequence[int]) -> Iterator[Row]:
        """See `RowFile.pick`."""
        with _open(self.path) as file:
            for number in numbers:
                file.seek(self._starts[number])
                place = _Place()
                cells = next(self._cells(self._decoded(file, place), place), [])
                yield self._row(cells, f"{self.path}, row {number + 1}")

    def where(self, number: int) -> str:
        """See `RowFile.where`."""
        return f"{self.path}, line {self._lines[number]}"

    def _decoded(self, file: BinaryIO, place: _Place) -> Iterator[str]:
        for line in iter(file.readline, b""):
            try:
                text = line.decode("utf-8" if place.start else "utf-8-sig")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.path}, line {place.line + 1}: not UTF-8 ({error.reason}); save it as "
                    "CSV in UTF-8"
                ) from error
            place.start, place.line = place.start + len(line), place.line + 1
            yield text

    def _cells(self, lines: Iterable[str], place: _Place) -> Iterator[list[str]]:
        # It asks for a further line only where a quoted cell goes on, so `place` is behind a row.
        try:
            yield from csv.reader(lines, delimiter=self._delimiter, strict=True)
        except csv.Error as error:
            raise InputError(
                f"{self.path}, line {place.line}: not valid CSV ({error}); correct the line"
            ) from error

    def _row(self, cells: Sequence[str], where: str) -> Row:
        if len(cells) > len(self._names):
            raise InputError(
                f"{where}: {len(cells)} cells under {len(self._names)} columns "
                f"({', '.join(self._names)}); put a text with a {self._delimiter!r} in quotes"
            )
        return {name: cell for name, cell in zip(self._names, cells, strict=False) if cell}


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
                f"{self.path} is not a readable {self.kind} file ({first_line(error)}); "
                "write it again"
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


def _open(path: Path) -> BinaryIO:
    """The file, to be read; `InputError` where it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); correct the line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row
