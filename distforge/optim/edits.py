"""Changes of parameters that are to follow the next update, such as QK-Clip's.

They are applied by the optimizer itself, right after its update, because there the parameter that
training keeps is at hand: the whole one, or this rank's part of the float32 master. Whoever copies
masters into low-precision weights does that afterwards, so all copies agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from distforge.optim.layout import FlatShard

InPlace = Callable[[Tensor], None]


class PendingEdits:
    """Edits by parameter, applied once and forgotten."""

    def __init__(self) -> None:
        self._edits: dict[int, list[InPlace]] = defaultdict(list)
        self._kept: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._edits)

    def add(self, parameter: Tensor, in_place: InPlace) -> None:
        """``in_place`` changes a tensor of the parameter's shape, elementwise and affinely."""
        self._edits[id(parameter)].append(in_place)
        self._kept.append(parameter)  # so that its id stays its own

    def clear(self) -> None:
        """Forget what was not applied."""
        self._edits.clear()
        self._kept.clear()

    def apply(self, parameter: Tensor) -> None:
        """Edit a whole parameter."""
        for in_place in self._edits.pop(id(parameter), ()):
            in_place(parameter)

    def apply_to_flat(self, shard: FlatShard, rank: int) -> None:
        """Edit this rank's fragments of the parameters in a flat tensor."""
        for piece in shard.pieces:
            for in_place in self._edits.pop(id(piece.parameter), ()):
                # The edit works on whole parameters; being affine, it shows itself on 0 and 1.
                offset = torch.zeros(piece.shape, device=shard.tensor.device)
                factor = torch.ones(piece.shape, device=shard.tensor.device)
                in_place(offset)
                in_place(factor)
                factor -= offset
                for fragment in piece.held[rank]:
                    part = slice(fragment.offset, fragment.offset + fragment.numel)
                    values = shard.tensor[fragment.start : fragment.start + fragment.numel]
                    values.mul_(factor.view(-1)[part]).add_(offset.view(-1)[part])
