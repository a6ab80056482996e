"""Operators with a native kernel: it runs where it fits, else the reference.

A list of an optimizer's tensors is looked at by the native code, before it changes anything: to do
that here would take longer than a GPU takes for a small model's step. What it refuses is looked at
again here, for a sentence that names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distforge.ops import choice, native, reference
from distforge.ops.checks import (
    check_factors,
    check_filter,
    check_grokfast_momentum,
    check_grokfast_momentum_into,
    check_matrices,
    check_orthogonal_update,
    check_small_muon_step,
    has_ema,
)


def newton_schulz(x: Tensor, coefficients: str = "quintic", steps: int = 5) -> Tensor:
    problem = native.why_not_native("newton_schulz", [x])
    if not problem and x.requires_grad and torch.is_grad_enabled():
        problem = "the native kernel has no derivative"
    if problem:
        native.tell_once("newton_schulz", problem)
        return reference.newton_schulz(x, coefficients, steps)
    check_matrices(x)
    flat = reference.flat_schedule(coefficients, steps)
    plain = x.detach().contiguous()

    def kernel() -> Tensor:
        result: Tensor = torch.ops.distforge.newton_schulz(plain, flat)
        return result

    def in_torch() -> Tensor:
        return reference.newton_schulz(plain, coefficients, steps)

    if x.numel() and choice.is_measured(x.device):
        question = f"newton_schulz {x.dtype} {choice.class_of(x)} {coefficients} {steps}"
        if choice.slower(question, x.device, kernel, in_torch):
            return in_torch()
    return kernel()


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
    check_grokfast_momentum(grad, ema, momentum, alpha, lamb, beta)
    emas = [ema] if ema is not None and has_ema(grad, ema) else None
    update = torch.empty_like(grad)
    lists = [grad], emas, [momentum], [update]
    grokfast_momentum_into_(*lists, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov)
    return update


def grokfast_momentum_into_(
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> None:
    if _runs_as_reference("grokfast_momentum_into_", grads, updates):
        reference.grokfast_momentum_into_(
            grads, emas, momenta, updates, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov
        )
        return
    check_filter(alpha, lamb, beta)
    try:
        with torch.no_grad():
            torch.ops.distforge.grokfast_momentum_into_(
                grads, emas or [], momenta, updates, alpha, lamb, beta, nesterov
            )
    except RuntimeError:
        check_grokfast_momentum_into(grads, emas, momenta, updates, alpha, lamb, beta)
        raise


def orthogonal_update_(
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    scale: float,
) -> None:
    if _runs_as_reference("orthogonal_update_", weights, updates):
        reference.orthogonal_update_(
            weights, updates, lr=lr, weight_decay=weight_decay, scale=scale
        )
        return
    check_factors(lr, weight_decay, scale)
    try:
        with torch.no_grad():
            torch.ops.distforge.orthogonal_update_(weights, updates, lr, weight_decay, scale)
    except RuntimeError:
        check_orthogonal_update(weights, updates, lr, weight_decay, scale)
        raise


def small_muon_step_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    *,
    rows: Sequence[int],
    columns: Sequence[int],
    scales: Sequence[float],
    coefficients: str,
    steps: int,
    lr: float,
    weight_decay: float,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> None:
    filters: dict[str, Any] = {
        "alpha": alpha,
        "lamb": lamb,
        "beta": beta,
        "nesterov": nesterov,
    }
    if _runs_as_reference("small_muon_step_", weights, ()):
        reference.small_muon_step_(
            weights,
            grads,
            emas,
            momenta,
            rows=rows,
            columns=columns,
            scales=scales,
            coefficients=coefficients,
            steps=steps,
            lr=lr,
            weight_decay=weight_decay,
            **filters,
        )
        return
    check_filter(alpha, lamb, beta)
    check_factors(lr, weight_decay, max(scales))
    shapes = rows, columns, scales
    rates = reference.flat_schedule(coefficients, steps), lr, weight_decay
    try:
        with torch.no_grad():
            torch.ops.distforge.small_muon_step_(
                weights, grads, emas or [], momenta, *shapes, *rates, *filters.values()
            )
    except RuntimeError:
        check_small_muon_step(weights, grads, emas, momenta, rows, columns)
        raise


def _runs_as_reference(operator: str, tensors: Sequence[Tensor], updates: Sequence[Tensor]) -> bool:
    """Whether it has to; the log says why. No tensors need no kernel, and no torch operator knows
    its device without one."""
    problem = native.why_not_native(operator, tensors)
    problem = problem or native.why_not_native(operator, updates, role="update")
    if problem:
        native.tell_once(operator, problem)
    return bool(problem) or len(tensors) == 0


for _function in (
    newton_schulz,
    grokfast_momentum_,
    grokfast_momentum_into_,
    orthogonal_update_,
    small_muon_step_,
):
    _function.__doc__ = getattr(reference, _function.__name__).__doc__
