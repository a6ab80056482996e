"""Newton-Schulz on many matrices: which go together, in which dtype, and how they are scaled."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distforge.ops import newton_schulz
from distforge.optim.config import UpdateScale
from distforge.optim.layout import Matrix
from distforge.optim.param_groups import as_matrices, from_matrices, matrix_shape

# Turing's small cards have none: float16 would be coarser there and hardly faster.
_WITHOUT_TENSOR_CORES = ("GTX 16", "GeForce MX")


def orthogonalise(
    matrices: Sequence[Matrix], updates: Sequence[Tensor], group: dict[str, Any]
) -> list[Tensor]:
    """About U V^T of each update's singular value decomposition U S V^T.

    Args:
        matrices: their shapes and layouts.
        updates: the elements of each, flat and row-major, all on one device.
        group: the Muon group's ``ns_dtype``, ``ns_coefficients`` and ``ns_steps``.

    Returns:
        Flat tensors in the iteration's dtype, in the order of ``matrices``. Matrices of one shape
        go through the iteration as one batch.
    """
    together: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        _, m, n = matrix_shape(matrix.shape, matrix.layout)
        together[m, n].append(index)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for indices in together.values():
        stacks = [_stacked(matrices[i], updates[i], group["ns_dtype"]) for i in indices]
        batch = stacks[0] if len(stacks) == 1 else torch.cat(stacks)
        pieces = newton_schulz(batch, group["ns_coefficients"], group["ns_steps"]).split(
            [len(stack) for stack in stacks]
        )
        for i, piece in zip(indices, pieces, strict=True):
            results[i] = from_matrices(piece, matrices[i].shape, matrices[i].layout).flatten()
    return results


def _stacked(matrix: Matrix, update: Tensor, ns_dtype: str) -> Tensor:
    return cast(as_matrices(update.view(matrix.shape), matrix.layout), ns_dtype)


def cast(matrices: Tensor, ns_dtype: str) -> Tensor:
    """(batch, m, n) in the dtype of the iteration, up to a positive factor of each matrix.

    Newton-Schulz normalises, so the factor is free; float16 needs one, because momentum of 1e-8
    would be zero in it.
    """
    dtype = iteration_dtype(ns_dtype, matrices.device)
    if dtype is torch.float16:
        tiny = torch.finfo(matrices.dtype).tiny
        # The largest magnitude goes first: the norm's squares neither overflow nor vanish.
        matrices = matrices / matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
        norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
        matrices = matrices / norm.clamp_min(tiny)
    return matrices.to(dtype)


def iteration_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of ``ns_dtype`` on a device; see MuonGrokfastConfig for "auto"."""
    if name == "auto":
        return _fastest_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    # Emulated bf16 (before Ampere) is slower than float32; float16 has tensor cores there, if any.
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    recent = torch.cuda.get_device_capability(device) >= (7, 0)
    small = any(card in torch.cuda.get_device_name(device) for card in _WITHOUT_TENSOR_CORES)
    return torch.float16 if recent and not small else torch.float32


def travel_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype in which fragments of an update go to their owner: the iteration's, where each
    fragment can be cast by itself. float16 needs the norm of the whole matrix first."""
    dtype = iteration_dtype(name, device)
    return torch.float32 if dtype is torch.float16 else dtype


def update_scale(scale: UpdateScale, matrix: Matrix, *, transposed: bool = False) -> float:
    """Factor of an orthogonal m x n update; ``transposed`` swaps m and n (weights as (in, out)).

    "spectral": sqrt(max(1, m/n)) (Bernstein 2025). "match_rms_adamw": 0.2 sqrt(max(m, n)), the
    root mean square of a typical AdamW update (Liu et al. 2025, "Muon is scalable").
    """
    _, m, n = matrix_shape(matrix.shape, matrix.layout)
    if transposed:
        m, n = n, m
    if scale == "spectral":
        return math.sqrt(max(1.0, m / n))
    return 0.2 * math.sqrt(max(m, n))
