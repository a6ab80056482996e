"""What a rank sends in an optimizer step: the communication of ZeRO and of MuonGrokfast, counted.

With weights and gradients of N bytes, W ranks and A micro-batches a rank, each rank sends, of
f = N (W - 1) / W:

=====  =================  =======  =======================================
stage  gradients          weights  MuonGrokfast's matrices, M bytes of them
=====  =================  =======  =======================================
0      2 f                0        M (W - 1) / W, if all owners are alike
1      2 f                f        what straddles two ranks' parts, twice
2      2 A f              f        the same
3      2 A f              A f      2 M (W - 1) / W²
=====  =================  =======  =======================================

An all-reduce is 2 f, a gather f. DeepSpeed reduces ZeRO 1's and 2's gradients to all ranks. At
stage 3 a micro-batch is one gather and an all-reduce with gloo and up to 1e9 parameters, else two
gathers and a reduce-scatter: 3 f either way. What matrices cost is counted by the optimizer's own
plan, which balances whole ones over the ranks, and pads at stage 0. Scalars and headers are left
out. (Chan et al. 2007, "Collective communication"; Rajbhandari et al. 2020, "ZeRO", section 7.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distforge.optim.exchange import NARROWEST
from distforge.optim.layout import Fragment, Matrix
from distforge.optim.plan import Bucket, plan_buckets

# `scratch_bytes` for each byte of an element that travels.
_SCRATCH = 16
_CAPACITY_BYTES = 256 << 20

Shape = tuple[int, int]


def bytes_sent(
    num_parameters: int,
    muon_shapes: Sequence[Shape],
    *,
    zero_stage: int,
    world_size: int,
    portions: int = 1,
    element_bytes: int = 4,
    update_bytes: int = 4,
) -> dict[str, float]:
    """Bytes that each rank sends in an optimizer step, on average over the ranks.

    Args:
        num_parameters: all that are trained.
        muon_shapes: of the matrices that Muon trains, in the model's order; empty for AdamW.
        zero_stage: 0 to 3.
        portions: micro-batches of a rank in a step.
        element_bytes: of weights and gradients as they travel: 4, or 2 where `EngineConfig.
            halves_weights`.
        update_bytes: of Newton-Schulz's dtype: 4 for float32, 2 for bfloat16.

    Returns:
        "gradients", "weights", "updates" and their "total".
    """
    once = element_bytes * num_parameters * (world_size - 1) / world_size
    repeats = portions if zero_stage >= 2 else 1
    gathers = (0, 1, 1, portions)[zero_stage]
    found = {
        "gradients": 2.0 * repeats * once,
        "weights": gathers * once,
        "updates": update_bytes
        * _update_elements(muon_shapes, zero_stage, world_size, update_bytes),
    }
    return {**found, "total": sum(found.values())}


def _update_elements(shapes: Sequence[Shape], stage: int, world_size: int, size: int) -> float:
    """Elements of updates that a rank sends, on average."""
    if world_size == 1 or not shapes:
        return 0.0
    matrices = _matrices(shapes, stage, world_size)
    capacity = _CAPACITY_BYTES // (_SCRATCH * size)
    buckets = plan_buckets(matrices, world_size, capacity)
    if stage == 0:
        padded = sum(_gathered(bucket, world_size, capacity) for bucket in buckets)
        return float(padded * (world_size - 1))
    away = sum(
        matrix.numel - matrix.held_by(owner)
        for bucket in buckets
        for matrix, owner in zip(bucket.matrices, bucket.owners, strict=True)
    )
    return 2 * away / world_size


def _gathered(bucket: Bucket, world_size: int, capacity: int) -> int:
    """Elements that each owner gives to all: what the one with most has, in whole windows."""
    owned = [0] * world_size
    for matrix, owner in zip(bucket.matrices, bucket.owners, strict=True):
        owned[owner] += matrix.numel
    width = min(max(owned), max(NARROWEST, capacity // (2 * world_size)))
    return -(-max(owned) // width) * width


def _matrices(shapes: Sequence[Shape], stage: int, world_size: int) -> list[Matrix]:
    if stage == 0:
        copies = tuple(range(world_size))
        return [
            Matrix(s, "matrix", ((Fragment(0, 0, 0, math.prod(s)),),) * world_size, copies)
            for s in shapes
        ]
    partition = -(-sum(map(math.prod, shapes)) // world_size)
    matrices, offset = [], 0
    for shape in shapes:
        numel = math.prod(shape)
        share, first = (-(-numel // world_size), 0) if stage == 3 else (partition, offset)
        held = tuple(_overlap(first, numel, rank * share, share) for rank in range(world_size))
        matrices.append(Matrix(shape, "matrix", held))
        offset += numel
    return matrices


def _overlap(offset: int, numel: int, start: int, length: int) -> tuple[Fragment, ...]:
    """Of a matrix from ``offset`` on, what lies in ``length`` elements from ``start`` on."""
    begin, end = max(offset, start), min(offset + numel, start + length)
    return (Fragment(0, 0, begin - offset, end - begin),) if begin < end else ()
