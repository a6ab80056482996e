"""The learner's layout: a text and its branches in one row, for one forward pass with gradients.

A row is ``text | branch 1 | branch 2 | …``; a branch is ``<think> t1 … tk </think> y1 … y(n-1)``,
the thought and the targets y1 … yn after it, the last of which is only predicted. `packed_mask`
says what a slot sees: the text up to its anchor, and its own branch up to itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts

# Widths of rows that are compared with each other.
_TRIES = 16
# Of a slot's cost, what does not grow with its row, in columns that it attends to and for each
# channel of the model: measured forward and backward on a CPU with 160 channels. Operations alone
# would say 6, but attention reads a mask and keeps what it computed.
_COLUMNS_A_CHANNEL = 2

THOUGHT, TARGET = 1, 2
"""Kinds of labelled slots: a sampled thought token, a target after a thought."""


def pack_thoughts(
    texts: Sequence[Sequence[int] | Tensor],
    thoughts: Thoughts,
    targets: Tensor,
    tags: Tags,
    *,
    width: int | None = None,
) -> dict[str, Tensor]:
    """Rows of at most ``width`` slots that hold every thought once, each after its text.

    Args:
        texts: token ids, without padding.
        thoughts: N thoughts; ``rows`` index ``texts``, ``positions`` the tokens of a text (what
            `sample_thoughts` returns for texts that are padded on the right).
        targets: (N, n) int64, what follows each thought, padded behind with -100.
        width: most slots of a row. A text whose branches need more takes several rows, each with
            the text; by default every text takes one.

    Returns (R, W) int64 tensors:
        input_ids: ids, padded behind with ``tags.pad``.
        position_ids: place of the slot in the sequence that it continues.
        branch: 0 for text, 1, 2, … for the branches of a row, -1 for padding.
        anchor: column of the last text slot that a branch sees; a text slot's own column.
        labels: the id that a slot predicts, -100 for none. An appended ``</think>`` is never one.
        kind: 0 without a label, else THOUGHT or TARGET.
        thought: index of the slot's thought among the N, -1 for text and padding.
        step: of a THOUGHT slot the column in ``thoughts.tokens``, of a TARGET slot the one in
            ``targets``; else -1.
        base_index: of a TARGET slot, the column of the text slot in its row that predicts the same
            token from the same tokens without the thought; -1 where the text does not go on so.

    Raises:
        InputError: an empty text, a position outside its text, or a branch that does not fit
            ``width`` with its text.
    """
    rows = list(_rows(texts, thoughts, targets, tags, width))
    if not rows:
        raise InputError("there is no thought to pack")
    longest = max(len(row.input_ids) for row in rows)
    fillings = _Row.fillings() | {"input_ids": tags.pad}
    return {
        name: torch.tensor(
            [getattr(row, name) + [filling] * (longest - len(row.input_ids)) for row in rows]
        )
        for name, filling in fillings.items()
    }


def thrifty_width(
    texts: Sequence[Sequence[int] | Tensor],
    thoughts: Thoughts,
    targets: Tensor,
    hidden_size: int,
) -> int:
    """Of some widths of rows the one in which these thoughts cost a model of so many channels the
    least, padded slots too.

    Wide rows repeat no text, but a slot attends to its whole row, and all rows are as wide as the
    text with most thoughts needs.
    """
    content = thoughts.content_lengths + 2 + ((targets != IGNORE_INDEX).sum(dim=1) - 1).clamp(min=0)
    branches: dict[int, list[int]] = defaultdict(list)
    needed: dict[int, int] = defaultdict(int)
    places = (thoughts.rows.tolist(), thoughts.positions.tolist(), content.tolist())
    for row, anchor, length in zip(*places, strict=True):
        branches[row].append(length)
        needed[row] = max(needed[row], min(anchor + max(targets.shape[1], 1), len(texts[row])))
    return best_width([(needed[row], own) for row, own in branches.items()], hidden_size)


def best_width(sizes: Sequence[tuple[int, Sequence[int]]], hidden_size: int) -> int:
    """See `thrifty_width`; of texts and branches of these lengths."""
    least = max(text + max(own) for text, own in sizes)
    ends = {end for text, own in sizes for end in accumulate(own, initial=text) if end > least}
    tried = [least, *sorted(ends)]
    tried = tried[:: -(-len(tried) // _TRIES)]
    alone = _COLUMNS_A_CHANNEL * hidden_size

    def cost(width: int) -> int:
        rows, longest = rows_of(sizes, width)
        return rows * longest * (alone + longest)

    return min(tried, key=lambda width: (cost(width), width))


def rows_of(sizes: Sequence[tuple[int, Sequence[int]]], width: int) -> tuple[int, int]:
    """How many rows of ``width`` slots `pack_thoughts` cuts texts and their branches of these
    lengths into, and how long the longest is."""
    rows = longest = 0
    for text, branches in sizes:
        filled = text
        for length in branches:
            if filled > text and filled + length > width:
                rows, longest, filled = rows + 1, max(longest, filled), text
            filled += length
        rows, longest = rows + 1, max(longest, filled)
    return rows, longest


def packed_mask(branch: Tensor, anchor: Tensor) -> Tensor:
    """(R, 1, W, W) boolean, true where the slot of a row (third) may attend to one (fourth).

    Args:
        branch, anchor: (R, W), as `pack_thoughts` returns them. Padding sees the row's first slot,
            so that its softmax is finite; nothing sees padding.
    """
    columns = torch.arange(branch.shape[1], device=branch.device)
    text = (branch == 0)[:, None, :] & (columns <= anchor[..., None])
    own = (branch[..., None] == branch[:, None, :]) & (branch > 0)[..., None]
    return (text | (own & (columns <= columns[:, None])))[:, None]


@dataclass
class _Row:
    """The columns of one row so far."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    anchor: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    thought: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    base_index: list[int] = field(default_factory=list)

    @staticmethod
    def fillings() -> dict[str, int]:
        """What each tensor is padded with."""
        zero = dict.fromkeys(("input_ids", "position_ids", "anchor", "kind"), 0)
        minus = dict.fromkeys(("branch", "thought", "step", "base_index"), -1)
        return zero | minus | {"labels": IGNORE_INDEX}

    def add_text(self, ids: list[int]) -> None:
        count = len(ids)
        self.input_ids += ids
        self.position_ids += range(count)
        self.branch += [0] * count
        self.anchor += range(count)
        self.labels += [IGNORE_INDEX] * count
        self.kind += [0] * count
        for column in (self.thought, self.step, self.base_index):
            column += [-1] * count

    def add_branch(self, branch: _Branch, number: int) -> None:
        count = len(branch.ids)
        self.input_ids += branch.ids
        self.position_ids += range(branch.anchor + 1, branch.anchor + 1 + count)
        self.branch += [number] * count
        self.anchor += [branch.anchor] * count
        self.thought += [branch.thought] * count
        for kind, label, step, base in branch.slots:
            self.kind.append(kind)
            self.labels.append(label)
            self.step.append(step)
            self.base_index.append(base)


@dataclass(frozen=True)
class _Branch:
    """A thought and its targets. ``slots``: kind, label, step and base of each of ``ids``."""

    thought: int
    anchor: int
    ids: list[int]
    slots: list[tuple[int, int, int, int]]


def _rows(
    texts: Sequence[Sequence[int] | Tensor],
    thoughts: Thoughts,
    targets: Tensor,
    tags: Tags,
    width: int | None,
) -> Iterator[_Row]:
    whole = [[int(token) for token in text] for text in texts]
    branches = defaultdict(list)
    for index, row in enumerate(thoughts.rows.tolist()):
        if not 0 <= row < len(whole):
            raise InputError(f"thought {index} belongs to text {row} of {len(whole)}")
        branches[row].append(index)
    written = _Written(thoughts, targets, tags)
    for number, ids in enumerate(whole):
        if not ids:
            raise InputError(f"text {number} is empty; thoughts need a token to follow")
        own = [written.branch(index, ids) for index in branches[number]]
        if own:
            yield from _rows_of_text(ids, own, targets.shape[1], width)


def _rows_of_text(
    ids: list[int], branches: list[_Branch], horizon: int, width: int | None
) -> Iterator[_Row]:
    # Beyond the last target of the last thought the text is of no use.
    needed = max(branch.anchor for branch in branches) + max(horizon, 1)
    row, number = _Row(), 0
    row.add_text(ids[:needed])
    for branch in branches:
        if width is not None and number and len(row.input_ids) + len(branch.ids) > width:
            yield row
            row, number = _Row(), 0
            row.add_text(ids[:needed])
        number += 1
        row.add_branch(branch, number)
        if width is not None and len(row.input_ids) > width:
            raise InputError(
                f"a text of {row.branch.count(0)} tokens and a branch of {len(branch.ids)} exceed "
                f"width = {width}; raise it, or shorten the texts or the thoughts"
            )
    yield row


class _Written:
    """Thoughts and targets as lists, read off the device once."""

    def __init__(self, thoughts: Thoughts, targets: Tensor, tags: Tags) -> None:
        self._anchors = thoughts.positions.tolist()
        self._tokens = thoughts.tokens.tolist()
        self._lengths = thoughts.lengths.tolist()
        self._closed = thoughts.closed.tolist()
        self._targets = targets.tolist()
        self._tags = tags

    def branch(self, index: int, text: list[int]) -> _Branch:
        anchor = self._anchors[index]
        if not 0 <= anchor < len(text):
            raise InputError(
                f"thought {index} follows token {anchor} of a text of {len(text)} tokens"
            )
        sampled = self._tokens[index][: self._lengths[index]]
        content = sampled[:-1] if self._closed[index] else sampled
        targets = [target for target in self._targets[index] if target != IGNORE_INDEX]
        slots = [(THOUGHT, token, step, -1) for step, token in enumerate(sampled)]
        if not self._closed[index]:
            slots.append((0, IGNORE_INDEX, -1, -1))  # what comes next is appended, not chosen
        for step, target in enumerate(targets):
            goes_on = text[anchor + 1 : anchor + 1 + step] == targets[:step]
            slots.append((TARGET, target, step, anchor + step if goes_on else -1))
        ids = [self._tags.open, *content, self._tags.close, *targets[:-1]]
        if not targets:
            slots.append((0, IGNORE_INDEX, -1, -1))
        return _Branch(index, anchor, ids, slots)
