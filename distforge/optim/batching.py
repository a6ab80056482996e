"""Which matrices are orthogonalised together, in which dtype, and how their update is scaled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distforge.optim.config import UpdateScale
from distforge.optim.param_groups import as_matrices

# The stack and the scratch of an iteration are a few times this size (64 Mi bf16: 128 MiB each).
MAX_STACKED_ELEMENTS = 1 << 26

Member = tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Iteration:
    """What two m x n matrices must share to go through Newton-Schulz in one batch."""

    m: int
    n: int
    device: torch.device
    dtype: torch.dtype
    coefficients: str
    steps: int

    @classmethod
    def of(cls, param: Tensor, group: dict[str, Any]) -> Iteration:
        """The iteration that a Muon group asks for its parameter.

        Raises InputError when the parameter has lost its shape, as under a wrapper that flattens
        or partitions it.
        """
        m, n = as_matrices(param, group["layout"]).shape[-2:]
        dtype = iteration_dtype(group["ns_dtype"], param.device)
        return cls(m, n, param.device, dtype, group["ns_coefficients"], group["ns_steps"])

    def cast(self, matrices: Tensor) -> Tensor:
        """(batch, m, n) in the dtype of the iteration, up to a positive factor of each matrix.

        Newton-Schulz normalises, so the factor is free; float16 needs one, because momentum of
        1e-8 would be zero in it.
        """
        if self.dtype is torch.float16:
            tiny = torch.finfo(matrices.dtype).tiny
            # The largest magnitude goes first: the norm's squares neither overflow nor vanish.
            matrices = matrices / matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
            norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
            matrices = matrices / norm.clamp_min(tiny)
        return matrices.to(self.dtype)


def iteration_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of ``ns_dtype`` on a device; see MuonGrokfastConfig for "auto"."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        # Emulated bf16 (before Ampere) is slower than float32; float16 has tensor cores there.
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def update_scale(scale: UpdateScale, iteration: Iteration, *, transposed: bool = False) -> float:
    """Factor of an orthogonal m x n update; ``transposed`` swaps m and n (weights as (in, out)).

    "spectral": sqrt(max(1, m/n)) (Bernstein 2025). "match_rms_adamw": 0.2 sqrt(max(m, n)), the
    root mean square of a typical AdamW update (Liu et al. 2025, "Muon is scalable").
    """
    m, n = (iteration.n, iteration.m) if transposed else (iteration.m, iteration.n)
    if scale == "spectral":
        return math.sqrt(max(1.0, m / n))
    return 0.2 * math.sqrt(max(m, n))


def bounded(members: list[Member], max_elements: int) -> Iterator[list[Member]]:
    """Cuts ``members`` into runs of at most ``max_elements`` elements, of one member at least."""
    chunk: list[Member] = []
    size = 0
    for member in members:
        if chunk and size + member[0].numel() > max_elements:
            yield chunk
            chunk, size = [], 0
        chunk.append(member)
        size += member[0].numel()
    if chunk:
        yield chunk
