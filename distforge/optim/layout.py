"""How a parameter is seen as matrices, and which elements of which matrix lie where: the one
description that all ranks derive alike."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distforge.errors import InputError

# "matrix" takes the last two dimensions as a matrix and the others as a batch of them (experts);
# "conv" flattens (out, in, k...) to (out, in k...); "fused_qkv" cuts one dimension, three times the
# other, into three square matrices; "rows:64" and "columns:64" cut a matrix into blocks of so many
# rows or columns (the heads of a projection).
Layout = str
_LAYOUT = re.compile(r"matrix|conv|fused_qkv|(rows|columns):([1-9]\d*)")


def require_layout(layout: Any) -> None:
    """Raises InputError unless it is one."""
    if not isinstance(layout, str) or not _LAYOUT.fullmatch(layout):
        raise InputError(
            f"layout of a parameter group is {layout!r}; expected one of matrix, conv, fused_qkv, "
            "rows:N, columns:N"
        )


def _blocks(layout: Layout) -> tuple[str, int]:
    """ "rows" or "columns" and how many; ("", 0) for the other layouts."""
    found = _LAYOUT.fullmatch(layout)
    assert found, layout
    return (found[1], int(found[2])) if found[1] else ("", 0)


def whole_shape(param: Tensor) -> tuple[int, ...]:
    """The shape that the model gave a parameter, though DeepSpeed's ``zero.Init`` may have
    partitioned it since."""
    return tuple(getattr(param, "ds_shape", param.shape))


def require_shape(name: str, param: Tensor) -> None:
    """Raises InputError for a parameter whose own shape cannot be told any more."""
    shape = whole_shape(param)
    if getattr(param, "_fsdp_flattened", False):
        raise InputError(
            f"parameter {name} of shape {shape} is flattened by FullyShardedDataParallel, so that "
            "its matrices are gone: use torch.distributed.fsdp.fully_shard, which keeps them."
        )
    if 0 in shape:
        raise InputError(
            f"parameter {name} of shape {shape} is empty and has no ds_shape to tell its own: "
            "make the optimizer before the weights are partitioned or freed."
        )


def as_matrices(tensor: Tensor, layout: Layout, what: str = "a tensor") -> Tensor:
    """The matrices of a parameter-shaped tensor, as (batch, m, n); a view where torch allows it.

    See Layout. Raises InputError, which calls it ``what``, when the shape does not fit the layout.
    """
    shape = tensor.shape
    cut_into, size = _blocks(layout)
    if cut_into:
        if tensor.ndim == 2 and cut_into == "rows" and shape[0] % size == 0:
            return tensor.reshape(-1, size, shape[1])
        if tensor.ndim == 2 and cut_into == "columns" and shape[1] % size == 0:
            return tensor.reshape(shape[0], -1, size).transpose(0, 1)
    elif layout == "conv" and tensor.ndim > 2:
        return tensor.reshape(1, shape[0], -1)
    elif layout == "fused_qkv":
        if tensor.ndim == 2 and shape[0] == 3 * shape[1]:
            return tensor.reshape(3, shape[1], shape[1])
        if tensor.ndim == 2 and shape[1] == 3 * shape[0]:
            return tensor.reshape(shape[0], 3, shape[0]).transpose(0, 1)
    elif tensor.ndim >= 2:
        return tensor.reshape(-1, shape[-2], shape[-1])
    raise InputError(
        f"{what} of shape {tuple(shape)} cannot be seen as matrices in the layout {layout!r}: "
        "Muon needs whole matrices (a flattened or partitioned one has lost its shape; under ZeRO, "
        "call distforge.optim.bind_zero right after deepspeed.initialize)."
    )


@functools.cache
def matrix_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int, int]:
    """(batch, m, n) of ``as_matrices`` for a parameter of that shape; InputError as there."""
    batch, m, n = as_matrices(torch.empty(shape, device="meta"), layout).shape
    return batch, m, n


def from_matrices(matrices: Tensor, shape: tuple[int, ...], layout: Layout) -> Tensor:
    """The inverse of as_matrices: (batch, m, n) back to the parameter's ``shape``."""
    side_by_side = layout == "fused_qkv" and shape[1] == 3 * shape[0]
    if side_by_side or layout.startswith("columns"):
        matrices = matrices.transpose(0, 1)
    return matrices.reshape(shape)


@dataclass(frozen=True)
class Fragment:
    """A run of a matrix's elements in the memory of one rank.

    shard: number of the flat tensor among those that the rank updates together.
    start: first element there.
    offset: first element in the matrix, row-major.
    numel: how many, at least 1.
    """

    shard: int
    start: int
    offset: int
    numel: int

    def within(self, first: int, numel: int) -> Fragment | None:
        """The part that lies in ``numel`` elements of the matrix from ``first`` on, seen from
        there; None when nothing does."""
        begin, end = max(self.offset, first), min(self.offset + self.numel, first + numel)
        if begin >= end:
            return None
        return Fragment(self.shard, self.start + begin - self.offset, begin - first, end - begin)


@dataclass(frozen=True)
class Matrix:
    """What is orthogonalised as a whole: a parameter, or a block of one (a projection, an expert).

    shape, layout: of the block, as as_matrices takes them.
    held: the fragments of each rank, by rank.
    copy_of: which copy of the matrix a rank's fragments belong to, by rank. Those of one copy are
        the matrix, once. Empty: there is one copy.
    """

    shape: tuple[int, ...]
    layout: Layout
    held: tuple[tuple[Fragment, ...], ...]
    copy_of: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def replicated(self) -> bool:
        """Whether every rank has a copy of its own."""
        return len(set(self.copy_of)) == len(self.held) > 1

    def held_by(self, rank: int) -> int:
        """Elements of the matrix that ``rank`` has."""
        return sum(fragment.numel for fragment in self.held[rank])

    def lends(self, rank: int, owner: int) -> bool:
        """Whether ``owner`` puts the matrix together from what ``rank`` has."""
        return not self.copy_of or self.copy_of[rank] == self.copy_of[owner]


def cut(
    shape: tuple[int, ...],
    layout: Layout,
    held: Sequence[Sequence[Fragment]],
    copy_of: tuple[int, ...] = (),
) -> list[Matrix]:
    """The matrices of a parameter, each with the fragments of it that each rank holds.

    Args:
        shape, layout: of the whole parameter.
        held: fragments of the whole parameter, by rank.
        copy_of: as Matrix has it.

    A stack of matrices and three projections stored one below the other are cut apart, so that
    they can go to different owners. Projections stored side by side interleave in memory and stay
    together.
    """
    block, block_layout = block_of(shape, layout)
    size = math.prod(block)
    return [
        Matrix(
            block,
            block_layout,
            tuple(
                tuple(part for f in fragments if (part := f.within(first, size)) is not None)
                for fragments in held
            ),
            copy_of,
        )
        for first in range(0, math.prod(shape), size)
    ]


def block_of(shape: tuple[int, ...], layout: Layout) -> tuple[tuple[int, ...], Layout]:
    """The shape and layout of the parts, one after the other in memory, that `cut` makes."""
    if layout == "matrix":
        return shape[-2:], layout
    if layout == "fused_qkv" and shape[0] == 3 * shape[1]:
        return (shape[1], shape[1]), "matrix"
    cut_into, size = _blocks(layout)
    if cut_into == "rows":
        return (size, shape[1]), "matrix"
    return shape, layout


@dataclass(frozen=True, eq=False)
class Piece:
    """A parameter of the model and where its elements lie in the flat tensors of the ranks.

    parameter: the model's own, whatever it holds now. shape: of the whole. held: fragments by rank.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    held: tuple[tuple[Fragment, ...], ...]


@dataclass(frozen=True, eq=False)
class FlatShard:
    """A flat tensor that stands for several parameters in the optimizer, one part on each rank.

    tensor: this rank's part, what the optimizer is given.
    """

    tensor: Tensor
    pieces: tuple[Piece, ...]
