"""How a parameter is seen as matrices, and which elements of which matrix lie where: the one
description that all ranks derive alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distforge.errors import InputError

# "matrix" takes the last two dimensions as a matrix and the others as a batch of them (experts);
# "conv" flattens (out, in, k...) to (out, in k...); "fused_qkv" cuts one dimension, three times the
# other, into three square matrices.
Layout = Literal["matrix", "conv", "fused_qkv"]


def as_matrices(tensor: Tensor, layout: Layout) -> Tensor:
    """The matrices of a parameter-shaped tensor, as (batch, m, n); a view where torch allows it.

    See Layout. Raises InputError when the shape does not fit the layout.
    """
    shape = tensor.shape
    if layout == "conv" and tensor.ndim > 2:
        return tensor.reshape(1, shape[0], -1)
    if layout == "fused_qkv":
        if tensor.ndim == 2 and shape[0] == 3 * shape[1]:
            return tensor.reshape(3, shape[1], shape[1])
        if tensor.ndim == 2 and shape[1] == 3 * shape[0]:
            return tensor.reshape(shape[0], 3, shape[0]).transpose(0, 1)
    elif tensor.ndim >= 2:
        return tensor.reshape(-1, shape[-2], shape[-1])
    raise InputError(
        f"a tensor of shape {tuple(shape)} cannot be seen as matrices in the layout {layout!r}: "
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
    if layout == "fused_qkv" and shape[1] == 3 * shape[0]:
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
    held: the fragments of each rank, by rank. Together they are the matrix, once
        (``replicated`` = False), or each rank has all of it.
    """

    shape: tuple[int, ...]
    layout: Layout
    held: tuple[tuple[Fragment, ...], ...]
    replicated: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def held_by(self, rank: int) -> int:
        """Elements of the matrix that ``rank`` has."""
        return sum(fragment.numel for fragment in self.held[rank])


def cut(
    shape: tuple[int, ...],
    layout: Layout,
    held: Sequence[Sequence[Fragment]],
    *,
    replicated: bool = False,
) -> list[Matrix]:
    """The matrices of a parameter, each with the fragments of it that each rank holds.

    Args:
        shape, layout: of the whole parameter.
        held: fragments of the whole parameter, by rank.
        replicated: every rank holds everything.

    A stack of matrices and three projections stored one below the other are cut apart, so that
    they can go to different owners. Projections stored side by side interleave in memory and stay
    together.
    """
    block, block_layout = _block(shape, layout)
    size = math.prod(block)
    return [
        Matrix(
            block,
            block_layout,
            tuple(
                tuple(part for f in fragments if (part := f.within(first, size)) is not None)
                for fragments in held
            ),
            replicated,
        )
        for first in range(0, math.prod(shape), size)
    ]


def _block(shape: tuple[int, ...], layout: Layout) -> tuple[tuple[int, ...], Layout]:
    if layout == "matrix":
        return shape[-2:], layout
    if layout == "fused_qkv" and shape[0] == 3 * shape[1]:
        return (shape[1], shape[1]), "matrix"
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
