"""Operators with a native kernel: it runs where it fits, else the reference.

A list of an optimizer's tensors is looked at by the native code, before it changes anything: to do
that here would take longer than a GPU takes for a small model's step. What it refuses is looked at
again here, for a sentence that names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distforge.ops import native, reference
from distforge.ops.checks import (
    as_list,
    check_factors,
    check_filter,
    check_grokfast_momentum,
    check_grokfast_momentum_into,
    check_matrices,
    check_orthogonal_update,
)


def newton_schulz(x: Tensor, coefficients: str = "quintic", steps: int = 5) -> Tensor:
    problem = native.misfit("newton_schulz", [x])
    if not problem and x.requires_grad and torch.is_grad_enabled():
        problem = "the native kernel has no derivative"
    if problem:
        native.tell_once("newton_schulz", problem)
        return reference.newton_schulz(x, coefficients, steps)
    check_matrices(x)
    schedule = reference.coefficient_schedule(coefficients, steps)
    flat = [number for triple in schedule for number in triple]
    result: Tensor = torch.ops.distforge.newton_schulz(x.detach().contiguous(), flat)
    return result


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
    problem = native.misfit("grokfast_momentum_", [grad])
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
    name = "grokfast_momentum_into_"
    problem = native.misfit(name, grads) or native.misfit(name, updates, role="update")
    if problem:
        native.tell_once(name, problem)
        reference.grokfast_momentum_into_(
            grads, emas, momenta, updates, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov
        )
        return
    check_filter(alpha, lamb, beta)
    if len(grads) == 0:
        check_grokfast_momentum_into(grads, emas, momenta, updates, alpha, lamb, beta)
        return
    try:
        torch.ops.distforge.grokfast_momentum_into_(
            grads, emas or [], momenta, updates, alpha, lamb, beta, nesterov
        )
    except RuntimeError:
        check_grokfast_momentum_into(grads, emas, momenta, updates, alpha, lamb, beta)
        raise


def orthogonal_update_(
    weight: Tensor | Sequence[Tensor],
    update: Tensor | Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    copy: Tensor | Sequence[Tensor] | None = None,
) -> None:
    name = "orthogonal_update_"
    weights, updates, copies = as_list(weight), as_list(update), as_list(copy)
    problem = (
        native.misfit(name, weights)
        or native.misfit(name, updates, role="update")
        or native.misfit(name, copies, role="copy")
    )
    if problem:
        native.tell_once(name, problem)
        reference.orthogonal_update_(
            weights, updates, lr=lr, weight_decay=weight_decay, scale=scale, copy=copies
        )
        return
    check_factors(lr, weight_decay, scale)
    if not weights:
        check_orthogonal_update(weights, updates, copies, lr, weight_decay, scale)
        return
    try:
        with torch.no_grad():
            torch.ops.distforge.orthogonal_update_(
                weights, updates, copies, lr, weight_decay, scale
            )
    except RuntimeError:
        check_orthogonal_update(weights, updates, copies, lr, weight_decay, scale)
        raise


for _function in (
    newton_schulz,
    grokfast_momentum_,
    grokfast_momentum_into_,
    orthogonal_update_,
):
    _function.__doc__ = getattr(reference, _function.__name__).__doc__
