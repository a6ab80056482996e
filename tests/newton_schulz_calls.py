"""What the optimizer gives to Newton-Schulz, seen from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from distforge.optim import iteration, small_step


class Call(NamedTuple):
    """One batch of matrices, or one matrix of those whose whole step is one call."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@contextmanager
def newton_schulz_calls() -> Iterator[list[Call]]:
    """A list that grows by each call that this process makes meanwhile."""
    calls: list[Call] = []
    original, small = iteration.newton_schulz, small_step.small_muon_step_

    def seen(x, *args):
        calls.append(Call(tuple(x.shape), x.dtype))
        return original(x, *args)

    def seen_small(weights, *args, rows, columns, **options):
        calls.extend(Call((1, m, n), torch.float32) for m, n in zip(rows, columns, strict=True))
        small(weights, *args, rows=rows, columns=columns, **options)

    iteration.newton_schulz, small_step.small_muon_step_ = seen, seen_small
    try:
        yield calls
    finally:
        iteration.newton_schulz, small_step.small_muon_step_ = original, small
