"""What the optimizer can tell about a step, measured on the steps that are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.optim.layout import Fragment, Matrix, as_matrices
from distforge.optim.peers import Peers


@dataclass(frozen=True)
class OptimizerMetrics:
    """One step of the Muon parameters, over all ranks; NaN where there was nothing to measure.

    update_rms: root mean square of s O, the change of a weight at a learning rate of one.
    grad_ema_cosine: cosine in [-1, 1] between the gradient and Grokfast's average of it (after
        the step's update): near 1 when the gradient is slow, near 0 when it is noise.
    ns_residual: ||O O^T - I||_F / sqrt(s) for one matrix of each batch, averaged; s is its shorter
        side. 0 is orthogonal; quintic coefficients leave about 0.3.
    matrices: how many were orthogonalised, each counted by its owner.
    """

    update_rms: float
    grad_ema_cosine: float
    ns_residual: float
    matrices: int


class StepSample:
    """Sums over the parts of a step on this rank; `reduced` adds those of the others."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(
            ("updates", "elements", "g.h", "g.g", "h.h", "residual", "residuals", "matrices"), 0.0
        )

    def add_gradient(self, grad: Tensor, ema: Tensor) -> None:
        """A part of the gradient with its average; in float64, as squares of 1e-30 vanish."""
        g, h = grad.double().flatten(), ema.double().flatten()
        self._sums["g.h"] += float(g @ h)
        self._sums["g.g"] += float(g @ g)
        self._sums["h.h"] += float(h @ h)

    def add_orthogonal(self, matrices: Sequence[Matrix], results: Sequence[Tensor]) -> None:
        """Orthogonalised matrices; the first of each shape is examined."""
        seen = set()
        for matrix, result in zip(matrices, results, strict=True):
            stack = as_matrices(result.view(matrix.shape), matrix.layout)
            self._sums["matrices"] += len(stack)
            if stack.shape[-2:] in seen:
                continue
            seen.add(stack.shape[-2:])
            self._sums["residual"] += _residual(stack[0])
            self._sums["residuals"] += 1

    def add_update(self, parts: Iterable[tuple[Fragment, Tensor]], scale: float) -> None:
        """The orthogonal update of fragments held here."""
        for _, update in parts:
            self._sums["updates"] += scale**2 * float(update.double().square().sum())
            self._sums["elements"] += update.numel()

    def reduced(self, peers: Peers | None) -> OptimizerMetrics:
        """The step's metrics; collective over ``peers``, if there are any."""
        sums = self._sums
        if peers is not None and peers.size > 1:
            total = torch.tensor(list(sums.values()), dtype=torch.float64, device=peers.device)
            dist.all_reduce(total, group=peers.group)
            sums = dict(zip(sums, total.tolist(), strict=True))
        cosine = _ratio(sums["g.h"], math.sqrt(sums["g.g"] * sums["h.h"]))
        return OptimizerMetrics(
            update_rms=math.sqrt(_ratio(sums["updates"], sums["elements"])),
            grad_ema_cosine=cosine,
            ns_residual=_ratio(sums["residual"], sums["residuals"]),
            matrices=round(sums["matrices"]),
        )


def _residual(matrix: Tensor) -> float:
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    short = short.float()
    gram = short @ short.mT
    identity = torch.eye(len(gram), device=gram.device)
    return float(torch.linalg.matrix_norm(gram - identity)) / math.sqrt(len(gram))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
