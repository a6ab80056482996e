"""What MuonGrokfast keeps for a parameter (its docstring has the buffers), taken up for a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distforge.optim.adamw import AdamWEntry
from distforge.optim.muon_step import Shard
from distforge.optim.precision import wide_dtype

State = dict[str, Any]
# Numbers of updates, one tensor each.
StepCounts = dict[float, Tensor]


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
