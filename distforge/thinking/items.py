"""What is thought about: a text, the places in it to think at, and what should come next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX


@dataclass(frozen=True)
class ThoughtItem:
    """One text, in token ids.

    id: names the item in records.
    text: at least one token.
    positions: indices of the text; a thought at p sees ``text[: p + 1]``. Empty until the item is
        `placed`.
    targets: for each position, the tokens that should follow.
    gold: the true thought, without tags, where there is one. It is only ever probed with, never
        trained on.
    document: the name of what the text is a piece of; empty where it stands alone.
    """

    id: str
    text: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    gold: tuple[int, ...] | None = None
    document: str = ""

    @property
    def source(self) -> str:
        """What is independent of other sources: a document, or the item itself."""
        return self.document or self.id


def in_batches(items: Sequence[ThoughtItem], most: int) -> list[Sequence[ThoughtItem]]:
    """The items in order, in batches of like size, at most ``most``: none has only one item, which
    could not be given another's thought, where another way of cutting is left."""
    number = -(-len(items) // most)
    borders = [len(items) * part // number for part in range(number + 1)] if number else [0]
    return [items[a:b] for a, b in itertools.pairwise(borders)]


def pad_texts(items: Sequence[ThoughtItem], pad: int) -> tuple[Tensor, Tensor]:
    """(items, longest) int64 ids, padded on the right, and the attention mask."""
    rows = [torch.tensor(item.text) for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def pad_targets(targets: Sequence[Sequence[int]]) -> Tensor:
    """(N, longest) int64, padded behind with -100."""
    rows = [torch.tensor(list(row), dtype=torch.int64) for row in targets]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)


def grouped(items: Sequence[ThoughtItem], thoughts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Rows, positions and the group of every thought, when each place gets ``thoughts`` of them.

    Groups are numbered by item and place; (N,) int64 twice and a list of N.
    """
    places = [(row, place) for row, item in enumerate(items) for place in item.positions]
    rows = torch.tensor([row for row, _ in places]).repeat_interleave(thoughts)
    positions = torch.tensor([place for _, place in places]).repeat_interleave(thoughts)
    return rows, positions, [group for group in range(len(places)) for _ in range(thoughts)]
