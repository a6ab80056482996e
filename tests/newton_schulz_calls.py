"""What the optimizer gives to Newton-Schulz, seen from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from distforge.optim import iteration


class Call(NamedTuple):
    """One batch of matrices."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@contextmanager
def newton_schulz_calls() -> Iterator[list[Call]]:
    """A list that grows by each call that this process makes meanwhile."""
    calls: list[Call] = []
    original = iteration.newton_schulz

    def seen(x, *args):
        calls.append(Call(tuple(x.shape), x.dtype))
        return original(x, *args)

    iteration.newton_schulz = seen
    try:
        yield calls
    finally:
        iteration.newton_schulz = original
