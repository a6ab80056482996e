"""DTensors (FSDP2, HSDP, tensor parallelism): which rank holds which elements of a parameter.

Known by their attributes, so that torch.distributed.tensor is imported only where it is in use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.optim.layout import FlatShard, Fragment, Piece

Ranges = list[Sequence[int]]

# An attribute that is missing takes a tensor a microsecond, and a step looks hundreds of times.
PLAIN = frozenset({Tensor, nn.Parameter})


def mesh_of(tensor: Tensor) -> Any | None:
    """The device mesh of a DTensor; None for a plain tensor."""
    return None if type(tensor) in PLAIN else getattr(tensor, "device_mesh", None)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, in the same memory; a plain tensor as it is."""
    if mesh_of(tensor) is None:
        return tensor.detach() if tensor.requires_grad else tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part.detach()


def local_gradient(param: Tensor) -> Tensor:
    """This rank's part of the gradient, laid out as the parameter is; collective where it was not.

    Under tensor parallelism the gradient of a replicated weight may still be a sum to be made.
    """
    grad: Any = param.grad
    if mesh_of(param) is None:
        return grad
    placements = param.placements  # type: ignore[attr-defined]
    if grad.placements != placements:
        grad = grad.redistribute(placements=placements)
    return local(grad)


def placed_as(part: Tensor, param: Tensor) -> Tensor:
    """A part of this rank as the DTensor that ``param`` is one of; itself for a plain parameter."""
    mesh = mesh_of(param)
    if mesh is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        mesh,
        param.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


def group_of(mesh: Any) -> dist.ProcessGroup | None:
    """The process group of all ranks of a mesh (None: of all ranks); collective the first time."""
    if mesh.size() == dist.get_world_size():
        return None
    group: dist.ProcessGroup = (mesh if mesh.ndim == 1 else mesh._flatten()).get_group()
    return group


@functools.lru_cache(maxsize=4096)
def held_by_ranks(
    shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]
) -> tuple[tuple[tuple[Fragment, ...], ...], tuple[int, ...]]:
    """The fragments of a DTensor on each rank of its mesh, and which copy of it that is part of.

    Ranks are those of ``group_of(mesh)``. Ranks of one copy hold every element once; a mesh without
    replication has one copy.
    """
    held, copies = [], []
    for rank in dist.get_process_group_ranks(group_of(mesh)):
        at = [int(i) for i in (mesh.mesh == rank).nonzero()[0]]
        held.append(_fragments(_ranges(shape, mesh, placements, at), shape))
        copies.append(tuple(i for i, p in zip(at, placements, strict=True) if p.is_replicate()))
    numbers = {copy: number for number, copy in enumerate(dict.fromkeys(copies))}
    return tuple(held), tuple(numbers[copy] for copy in copies)


def shard_of(param: Any) -> FlatShard:
    """This rank's part of a DTensor as a flat shard of that one parameter."""
    shape = tuple(param.shape)
    fragments, _ = held_by_ranks(shape, mesh_of(param), tuple(param.placements))
    return FlatShard(local(param).view(-1), (Piece("", param, shape, fragments),))


def require_understood(name: str, param: Tensor) -> None:
    """Raises InputError unless the part that this rank holds is what `held_by_ranks` says."""
    mesh = mesh_of(param)
    if mesh is None:
        return
    placements = param.placements  # type: ignore[attr-defined]
    found = tuple(local(param).shape)
    known = all(p.is_replicate() or hasattr(p, "dim") for p in placements)
    ranges = _ranges(tuple(param.shape), mesh, placements, mesh.get_coordinate()) if known else []
    if tuple(map(len, ranges)) != found:
        raise InputError(
            f"parameter {name} of shape {tuple(param.shape)} is placed as {placements}, of which "
            f"this rank's part should not have the shape {found}: shard it by fully_shard or "
            "distribute_tensor, with Shard and Replicate."
        )


def _ranges(
    shape: tuple[int, ...], mesh: Any, placements: Sequence[Any], at: Sequence[int]
) -> Ranges:
    """The indices along each dimension that the rank at a coordinate of the mesh holds."""
    ranges: Ranges = [range(size) for size in shape]
    sharded = [(number, p) for number, p in enumerate(placements) if not p.is_replicate()]
    # What FSDP shards after tensor parallelism is "strided": its mesh dimension comes first, its
    # cut last.
    for number, placement in sorted(sharded, key=lambda pair: hasattr(pair[1], "split_factor")):
        indices, parts = ranges[placement.dim], mesh.size(number)
        width = math.ceil(len(indices) / parts)
        ranges[placement.dim] = indices[at[number] * width : (at[number] + 1) * width]
    return ranges


def _fragments(ranges: Ranges, shape: tuple[int, ...]) -> tuple[Fragment, ...]:
    """Runs of the elements of a block, in a row-major tensor of ``shape``."""
    runs, stride = [(0, 1)], 1
    for indices, size in zip(reversed(ranges), reversed(shape), strict=True):
        if runs == [(0, stride)]:
            first = indices[0] * stride if len(indices) else 0
            runs = [(first, len(indices) * stride)] if len(indices) else []
        else:
            runs = [(index * stride + start, length) for index in indices for start, length in runs]
        stride *= size
    fragments, start = [], 0
    for offset, length in runs:
        fragments.append(Fragment(0, start, offset, length))
        start += length
    return tuple(fragments)
