"""Small questions of which it is known whether they can be answered without steps in between.

A question is a marker and some moves. After "all", a piece starts at state 0 and every move takes
it on; where it ends is the answer, which a shallow model does not see at a glance. After "first",
only the first move counts, and one look answers it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

PAD, EOS, OPEN, CLOSE, FILLER, FIRST, ALL = range(7)
STATE, CODE, MOVE, VOCABULARY = 7, 13, 19, 35
"""The first id of 6 states, of 6 code letters and of 16 moves; how many ids there are."""


@dataclass(frozen=True)
class Task:
    """Questions of ``length`` moves; ``table[state][move]`` is the next state, at most 6 states and
    16 moves."""

    name: str
    table: tuple[tuple[int, ...], ...]
    length: int

    @property
    def states(self) -> int:
        """How many; 1 / states is chance."""
        return len(self.table)


@dataclass(frozen=True)
class Questions:
    """N questions: ``text`` (N, 1 + length) token ids; ``states`` (N, length), where the piece is
    after each move, and ``composed``, where it would be if all moves counted; ``answer`` (N,)."""

    text: Tensor
    states: Tensor
    composed: Tensor

    @property
    def answer(self) -> Tensor:
        """The last state."""
        return self.states[:, -1]


def ask(task: Task, count: int, composing: float, generator: torch.Generator) -> Questions:
    """Random questions.

    Args:
        composing: of them, the share in which all moves count, in [0, 1].
    """
    table = torch.tensor(task.table)
    moves = torch.randint(table.shape[1], (count, task.length), generator=generator)
    state, composed = torch.zeros(count, dtype=torch.int64), []
    for move in moves.T:
        state = table[state, move]
        composed.append(state)
    every = torch.stack(composed, dim=1)
    counts = (torch.rand(count, generator=generator) < composing)[:, None]
    marker = torch.where(counts, ALL, FIRST)
    states = torch.where(counts, every, every[:, :1])
    return Questions(torch.cat([marker, MOVE + moves], dim=1), states, every)


def cups(count: int, length: int) -> Task:
    """A ball under one of ``count`` cups, at most 6, of which two are swapped at a time."""
    swaps = list(itertools.combinations(range(count), 2))
    table = tuple(
        tuple(pair[1 - pair.index(cup)] if cup in pair else cup for pair in swaps)
        for cup in range(count)
    )
    return Task(f"{count} cups, {length} swaps", table, length)
