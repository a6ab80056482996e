"""Operators with a native kernel: it runs where it fits, else the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from distforge.ops import native, reference
from distforge.ops.checks import check_grokfast_momentum


def grokfast_momentum_(
    grad: Tensor,
    ema: Tensor | None,
    momentum: Tensor,
    *,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> Tensor:
    problem = native.misfit(grad)
    if problem:
        native.tell_once("grokfast_momentum_", problem)
        return reference.grokfast_momentum_(
            grad, ema, momentum, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov
        )
    check_grokfast_momentum(grad, ema, momentum, alpha, lamb, beta)
    update: Tensor = torch.ops.distforge.grokfast_momentum_(
        grad, ema, momentum, alpha, lamb, beta, nesterov
    )
    return update


grokfast_momentum_.__doc__ = reference.grokfast_momentum_.__doc__
