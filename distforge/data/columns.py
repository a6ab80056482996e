"""Columns of a dataset that may have millions of rows, in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np


class Names(Sequence[str]):
    """Names, end to end in one text: a string of its own costs each of them 50 bytes more."""

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array("q")

    def append(self, name: str) -> None:
        self.text += name.encode()
        self.ends.append(len(self.text))

    def extend(self, text: bytes, ends: np.ndarray) -> None:
        """Append the names of another, of which these are ``text`` and ``ends``."""
        self.ends.frombytes((ends + len(self.text)).tobytes())
        self.text += text

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = self.ends[place - 1] if place else 0
        return self.text[start : self.ends[place]].decode()


class TokenParts:
    """Arrays of token ids as if they were one; a slice lies within one of them."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __getitem__(self, row: slice) -> np.ndarray:
        part = bisect_right(self._starts, row.start) - 1
        before = self._starts[part]
        return self._parts[part][row.start - before : row.stop - before]
