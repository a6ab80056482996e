"""One tokenized dataset that several processes have made together, each a share of it.

Every share lies in a directory that they all see. Its tokens, 4 bytes each, are mapped into memory
from there, so that they are there once, however many processes read them.
"""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from distforge import durable
from distforge.data.columns import Names, TokenParts
from distforge.data.dataset import ReasoningDataset, require_fitting
from distforge.data.examples import at
from distforge.data.schema import Example


def bounds(total: int, shares: int, number: int) -> tuple[int, int]:
    """Of ``total`` positions, the first of share ``number`` and the one behind its last."""
    return total * number // shares, total * (number + 1) // shares


def write_share(share: ReasoningDataset, directory: Path, number: int) -> None:
    """Leave a share, made of the examples within its `bounds`, for `JoinedDataset`."""
    length, name = share.shortest
    columns = io.BytesIO()
    np.savez(
        columns,
        lengths=share.lengths,
        target_counts=share.target_counts,
        positions=share.positions,
        strategies=np.frombuffer(share.strategies, dtype=np.uint8),
        names=np.frombuffer(share.ids.text, dtype=np.uint8),
        name_ends=share.ids.ends,
        shortest=np.array([length]),
        shortest_name=np.frombuffer(name.encode(), dtype=np.uint8),
    )
    tokens = np.asarray(share.tokens, dtype=np.int32)
    durable.write_files({directory / f"{number}.npz": columns.getvalue()})
    durable.write_pieces(directory / f"{number}.tokens", [tokens.view(np.uint8).data])


class JoinedDataset(ReasoningDataset):
    """The dataset of all ``examples``, from the shares in ``directory``.

    The files may go once it is made, where the file system keeps what is mapped (any local one).

    Raises:
        InputError: nothing fits ``max_length``.
        OSError: a share cannot be read.
    """

    def __init__(
        self, examples: Sequence[Example], directory: Path, shares: int, max_length: int
    ) -> None:
        names, tokens = Names(), []
        self.lengths, self.target_counts, self.positions = array("i"), array("i"), array("q")
        self.strategies, self.shortest = bytearray(), (math.inf, "")
        for number in range(shares):
            first, _ = bounds(len(examples), shares, number)
            with np.load(directory / f"{number}.npz") as columns:
                self.lengths.frombytes(columns["lengths"].tobytes())
                self.target_counts.frombytes(columns["target_counts"].tobytes())
                self.positions.frombytes((columns["positions"] + first).tobytes())
                self.strategies += columns["strategies"].tobytes()
                names.extend(columns["names"].tobytes(), columns["name_ends"])
                length, name = float(columns["shortest"][0]), columns["shortest_name"].tobytes()
            self.shortest = min(self.shortest, (length, name.decode()), key=lambda one: one[0])
            tokens.append(_mapped(directory / f"{number}.tokens"))
        self.ids, self.tokens = names, TokenParts(tokens)
        self.ends = array("q", accumulate(self.lengths))
        self.too_long = len(examples) - len(self)
        require_fitting(len(self), len(examples), max_length, self.shortest)
        self.examples = at(examples, self.positions)


def _mapped(path: Path) -> np.ndarray:
    if not path.stat().st_size:  # what is empty cannot be mapped
        return np.empty(0, dtype=np.int32)
    return np.memmap(path, dtype=np.int32, mode="r")
