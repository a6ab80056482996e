"""The examples of files, made when they are asked for.

What is held in memory is where rows begin, what split each is of, and which of them are meant:
about 13 bytes an example, so that five million of them open in a small process.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import overload

import numpy as np

from distforge.activity import counted
from distforge.data.outside import held_out, share_of, split_of, to_example
from distforge.data.rows import Row, RowFile
from distforge.data.schema import SPLITS, Example
from distforge.errors import InputError

_HELDOUT = SPLITS.index("heldout")
# Examples that are in memory at once where they are read in another order than the files'.
_BLOCK = 4096


class Examples(Sequence[Example]):
    """Examples of one or more files, all or some of them, in some order.

    Whatever is taken from it (a slice, a split, some positions) reads from the same files.
    """

    def __init__(self, files: _Files, chosen: np.ndarray) -> None:
        self._files, self._chosen = files, chosen

    @property
    def note(self) -> str:
        """What was read and how it was split, for people."""
        return self._files.note

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self._files, self._chosen[index])
        return next(self._files.pick(self._chosen[index][None]))

    def __iter__(self) -> Iterator[Example]:
        chosen = self._chosen
        if np.all(chosen[1:] > chosen[:-1]):
            yield from self._files.pick(chosen)
            return
        for start in range(0, len(chosen), _BLOCK):
            numbers, places = np.unique(chosen[start : start + _BLOCK], return_inverse=True)
            found = list(self._files.pick(numbers))
            yield from (found[place] for place in places)

    def of_split(self, split: str) -> Examples:
        """Those of a split, in the same order."""
        splits = np.frombuffer(self._files.splits, dtype=np.uint8)
        return Examples(self._files, self._chosen[splits[self._chosen] == SPLITS.index(split)])

    def at(self, positions: Sequence[int] | np.ndarray) -> Examples:
        """Those at these positions, in that order."""
        return Examples(self._files, self._chosen[np.asarray(positions, dtype=np.int64)])

    def where(self, position: int) -> str:
        """File and line of one, for messages."""
        return self._files.where(int(self._chosen[position]))


def of_split(examples: Sequence[Example], split: str) -> Sequence[Example]:
    """The examples of a split, in order."""
    if isinstance(examples, Examples):
        return examples.of_split(split)
    return [example for example in examples if example.split == split]


def at(examples: Sequence[Example], positions: Sequence[int]) -> Sequence[Example]:
    """The examples at these positions, in that order."""
    if isinstance(examples, Examples):
        return examples.at(positions)
    return [examples[position] for position in positions]


def blocks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples in lists of ``size``, the last one shorter."""
    rest = iter(examples)
    while block := list(islice(rest, size)):
        yield block


def data_note(examples: Sequence[Example]) -> str:
    """What was read and how it was split; empty of examples that were made."""
    return examples.note if isinstance(examples, Examples) else ""


@dataclass(frozen=True)
class Part:
    """A file, and the split of its rows that do not say; None splits those by their content."""

    rows: RowFile
    split: str | None


def open_examples(parts: Sequence[Part], note: str) -> Examples:
    """Read all rows of the parts once, and refuse what is no example.

    Args:
        note: of the parts, see `Examples.note`; how a part was split by content is added.

    Raises:
        InputError: names file and line; or there is no row.
    """
    files = _Files(parts, note)
    if not files.splits:
        names = " and ".join(str(part.rows.path) for part in parts)
        raise InputError(f"{names} holds no examples; expected one JSON object a line")
    return Examples(files, np.arange(len(files.splits)))


class _Files:
    """All rows of the parts, numbered through: the split of each, and the example it makes."""

    def __init__(self, parts: Sequence[Part], note: str) -> None:
        self._parts, self.note = parts, note
        self.splits = bytearray()
        counts = [self._open(part) for part in parts]
        self._starts = [0, *accumulate(counts)]

    def _open(self, part: Part) -> int:
        """Count the rows of a part, and note their splits."""
        before, undecided = len(self.splits), array("d")
        what = f"reading the rows of {part.rows.path}"
        for row, where in counted(part.rows.scan(), what):
            example = to_example(row, where, part.split or "train")
            said = split_of(row, part.split) is not None
            undecided.append(np.inf if said else share_of(example))
            self.splits.append(SPLITS.index(example.split))
        shares = np.frombuffer(undecided)
        mine = np.isfinite(shares)
        for number in held_out(shares).nonzero()[0]:
            self.splits[before + int(number)] = _HELDOUT
        if mine.any():
            self.note += f"; {self._split_by_content(part, before, mine)}"
        return len(shares)

    def _split_by_content(self, part: Part, before: int, mine: np.ndarray) -> str:
        """For people: what became of the rows of a part that name no split."""
        name, all_of_it = part.rows.path.name, mine.all()
        which = f"{name} has no splits" if all_of_it else f"{mine.sum():,} rows of {name} say none"
        count = sum(self.splits[before + int(n)] == _HELDOUT for n in mine.nonzero()[0])
        return (
            f"{which}, so {count:,} of {'its rows' if all_of_it else 'them'} are held out and "
            f"{int(mine.sum()) - count:,} trained on, by a hash of the question"
        )

    def pick(self, numbers: np.ndarray) -> Iterator[Example]:
        """The examples of these numbers, which only grow."""
        for index, part in enumerate(self._parts):
            start, end = np.searchsorted(numbers, self._starts[index : index + 2])
            mine = (numbers[start:end] - self._starts[index]).tolist()
            try:
                for number, row in zip(mine, part.rows.pick(mine), strict=True):
                    yield self._example(row, part, self._starts[index] + number)
            except ValueError as error:
                raise InputError(
                    f"{part.rows.path} has changed since it was opened ({error}); start again"
                ) from error

    def _example(self, row: Row, part: Part, number: int) -> Example:
        split = SPLITS[self.splits[number]]
        example = to_example(row, str(part.rows.path), split)
        return example if example.split == split else replace(example, split=split)

    def where(self, number: int) -> str:
        """File and line of a row."""
        index = bisect_right(self._starts, number) - 1
        return self._parts[index].rows.where(number - self._starts[index])
