"""What MuonGrokfast keeps: the hyperparameters of a group, completed from its configuration, and
the buffers of a parameter (the class's docstring has them), taken up for a step."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, get_args

import torch
from torch import Tensor

from distforge.errors import InputError, require_choice, require_in
from distforge.optim.adamw import AdamWEntry
from distforge.optim.config import Algorithm, MuonGrokfastConfig
from distforge.optim.layout import Layout, as_matrices
from distforge.optim.muon_step import Shard
from distforge.optim.precision import wide_dtype

State = dict[str, Any]
# Numbers of updates, one tensor each.
StepCounts = dict[float, Tensor]


def complete_group(
    given: dict[str, Any], config: MuonGrokfastConfig, taken: Set[int]
) -> dict[str, Any]:
    """A copy of ``given`` in which what it does not set comes from ``config``.

    Args:
        given: with "params" (parameters, or pairs with their names) and "algorithm".
        taken: the ids of parameters that are in other groups.

    Raises:
        InputError: an unknown algorithm or layout, a negative learning rate, a parameter that is
            taken or listed twice, or for Muon one that is not a matrix.
    """
    algorithm = given.get("algorithm")
    require_choice("algorithm of a parameter group", algorithm, get_args(Algorithm))
    defaults = _muon_defaults if algorithm == "muon" else _adamw_defaults
    group = {**defaults(config), **given}
    require_in("[0, inf)", **{"lr of a parameter group": group["lr"]})
    if algorithm == "muon":
        require_choice("layout of a parameter group", group["layout"], get_args(Layout))
    group.setdefault("initial_lr", group["lr"])
    params = group["params"]
    group["params"] = [params] if isinstance(params, Tensor) else list(params)
    seen = set(taken)
    for index, item in enumerate(group["params"]):
        name, param = item if isinstance(item, tuple) else (f"number {index}", item)
        if id(param) in seen:
            raise InputError(
                f"parameter {name} of shape {tuple(param.shape)} is in the optimizer twice: "
                "list each parameter in one group, once."
            )
        seen.add(id(param))
        if algorithm == "muon":
            as_matrices(param.detach(), group["layout"])
    return group


def _muon_defaults(config: MuonGrokfastConfig) -> dict[str, Any]:
    layout: Layout = "matrix"
    return {
        "lr": config.muon_lr,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "ns_steps": config.ns_steps,
        "ns_coefficients": config.ns_coefficients,
        "ns_dtype": config.ns_dtype,
        "scale": config.scale,
        "grokfast_alpha": config.grokfast_alpha,
        "grokfast_lambda": config.grokfast_lambda,
        "layout": layout,
        "transposed": False,
    }


def _adamw_defaults(config: MuonGrokfastConfig) -> dict[str, Any]:
    return {
        "lr": config.adamw_lr,
        "weight_decay": config.weight_decay,
        "betas": config.adamw_betas,
        "eps": config.adamw_eps,
        "grokfast_alpha": config.grokfast_alpha,
        "grokfast_lambda": config.grokfast_lambda if config.grokfast_on_adamw else 0.0,
    }


def muon_shard(
    param: Tensor, weight: Tensor, state: State, group: dict[str, Any], counts: StepCounts
) -> Shard:
    """A Muon parameter, or flat shard, as `muon_update` takes it; its state begins here.

    Args:
        param: with its gradient.
        weight: the same values, contiguous.
        state: the optimizer's for ``param``.
        group: the hyperparameters.
        counts: the same dict for all parameters of a step; empty at first.
    """
    assert param.grad is not None
    grad = param.grad.contiguous()
    _count_step(state, counts)
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(grad, dtype=wide_dtype(grad))
    return Shard(weight, grad, state["exp_avg"], _ema(state, "exp_avg_sq", grad, group))


def adamw_entry(
    param: Tensor, state: State, group: dict[str, Any], counts: StepCounts
) -> AdamWEntry:
    """An AdamW parameter as `adamw_update_` takes it, filtered where that is asked for.

    The arguments are those of `muon_shard`; its state begins here.
    """
    assert param.grad is not None
    grad = param.grad.to(wide_dtype(param.grad))
    _count_step(state, counts)
    if "exp_avg" not in state:
        state["exp_avg"] = torch.zeros_like(grad)
        state["exp_avg_sq"] = torch.zeros_like(grad)
    ema = _ema(state, "grokfast_ema", grad, group)
    if ema is not None:
        ema.lerp_(grad, 1 - group["grokfast_alpha"])
        grad = grad.add(ema, alpha=group["grokfast_lambda"])
    step = int(state["step"].item())
    return AdamWEntry(param, grad, state["exp_avg"], state["exp_avg_sq"], step)


def _count_step(state: State, counts: StepCounts) -> None:
    """One more update. States with the same number share its tensor."""
    number = float(state["step"]) + 1 if "step" in state else 1.0
    if number not in counts:
        counts[number] = torch.tensor(number, dtype=torch.float32)
    state["step"] = counts[number]


def _ema(state: State, name: str, grad: Tensor, group: dict[str, Any]) -> Tensor | None:
    """Grokfast's average, begun with the first gradient; None, and no buffer, without a filter."""
    if group["grokfast_lambda"] == 0:
        state.pop(name, None)
        return None
    if name not in state:
        state[name] = grad.to(wide_dtype(grad), copy=True)
    ema: Tensor = state[name]
    return ema
