"""Newton-Schulz on many matrices: which go together, in which dtype, and how they are scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distforge.ops import newton_schulz
from distforge.optim.config import UpdateScale
from distforge.optim.layout import Matrix, as_matrices, from_matrices
from distforge.optim.plan import Batch


class Stacks:
    """The matrices that this rank orthogonalises together, those of one shape in one tensor.

    An update is written to its place in the batch (``whole`` has them), part by part, so that
    nothing is gathered or cast between the filter and the iteration.

    Args:
        matrices: all of a bucket, by number.
        plan: the batches of those that this rank owns.
        dtype: in which updates are written, `travel_dtype`.
        device: where they lie.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        plan: Sequence[Batch],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._matrices = matrices
        # Where a matrix's elements go, row-major as in the parameter; contiguous, of any shape.
        self.whole: dict[int, Tensor] = {}
        self._filled: list[tuple[Batch, Tensor]] = []
        for batch in plan:
            stack = torch.empty(sum(batch.counts), batch.m, batch.n, dtype=dtype, device=device)
            self._filled.append((batch, stack))
            rows = stack.split(batch.counts)
            for number, count, place in zip(batch.numbers, batch.counts, rows, strict=True):
                # Interleaved projections lie in another order in memory than in the batch.
                self.whole[number] = torch.empty_like(place) if count > 1 else place

    def orthogonalised(self, group: dict[str, Any], dtype: torch.dtype) -> dict[int, Tensor]:
        """About U V^T of each update's singular value decomposition U S V^T, by number.

        Args:
            group: the Muon group's ``ns_coefficients`` and ``ns_steps``.
            dtype: of the iteration.

        Returns:
            Contiguous tensors in ``dtype`` with the elements of each matrix,
            row-major as in the parameter. The updates are given up.
        """
        results: dict[int, Tensor] = {}
        while self._filled:
            batch, stack = self._filled.pop()
            for number, count, place in zip(
                batch.numbers, batch.counts, stack.split(batch.counts), strict=True
            ):
                whole, matrix = self.whole.pop(number), self._matrices[number]
                if count > 1:
                    place.copy_(as_matrices(whole.view(matrix.shape), matrix.layout))
            done = newton_schulz(cast(stack, dtype), group["ns_coefficients"], group["ns_steps"])
            for number, rows in zip(batch.numbers, done.split(batch.counts), strict=True):
                matrix = self._matrices[number]
                results[number] = from_matrices(rows, matrix.shape, matrix.layout)
        return results


def cast(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, m, n) in the dtype of the iteration, up to a positive factor of each matrix.

    Newton-Schulz normalises, so the factor is free; float16 needs one, because momentum of 1e-8
    would be zero in it.
    """
    if dtype is torch.float16:
        tiny = torch.finfo(matrices.dtype).tiny
        # The largest magnitude goes first: the norm's squares neither overflow nor vanish.
        matrices = matrices / matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
        norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
        matrices = matrices / norm.clamp_min(tiny)
    return matrices.to(dtype)


def travel_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which fragments of an update go to their owner: that of the iteration, where
    each fragment can be cast by itself. float16 needs the norm of the whole matrix first."""
    return torch.float32 if dtype is torch.float16 else dtype


def update_scale(
    scale: UpdateScale | Callable[[int, int], float], m: int, n: int, *, transposed: bool = False
) -> float:
    """Factor of an orthogonal m x n update; ``transposed`` swaps m and n (weights as (in, out)).

    "spectral": sqrt(max(1, m/n)) (Bernstein 2025). "match_rms_adamw": 0.2 sqrt(max(m, n)), the
    root mean square of a typical AdamW update (Liu et al. 2025, "Muon is scalable"). A function
    is called with m and n.
    """
    if transposed:
        m, n = n, m
    if callable(scale):
        return float(scale(m, n))
    if scale == "spectral":
        return math.sqrt(max(1.0, m / n))
    return 0.2 * math.sqrt(max(m, n))
