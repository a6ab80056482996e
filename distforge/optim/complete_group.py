"""From what someone gives as a parameter group to a whole one, with every hyperparameter in it."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, get_args

from torch import Tensor

from distforge.errors import InputError
from distforge.optim.config import Algorithm, MuonGrokfastConfig, require_choice, require_range
from distforge.optim.param_groups import Layout, as_matrices


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
    require_range("lr of a parameter group", group["lr"], 0.0)
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
