"""Small matrices that one process holds on a CPU: their whole step in one native call.

For a matrix of 16 x 16 the arithmetic takes a few microseconds, and as many go into every view of a
tensor that the steps by batches make of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from distforge.ops import small_muon_step_, why_not_native
from distforge.optim.iteration import update_scale
from distforge.optim.layout import Layout, block_of, matrix_shape
from distforge.optim.param_state import Held, State, StepCounts, begun
from distforge.optim.placement import PLAIN

# The shorter and the longer side up to which this is the faster way; csrc/newton_schulz/product.h
# has the same.
_ORDER, _LENGTH = 24, 256

Numbered = tuple[int, Tensor]  # a parameter and its number in the optimizer


def takes_small(group: dict[str, Any]) -> bool:
    """Whether small matrices of a Muon group can be updated so."""
    if group["neuron_beta"] or (group["cautious_weight_decay"] and group["weight_decay"]):
        return False
    return not why_not_native("small_muon_step_", ())


def update_small(
    group: dict[str, Any], params: Iterable[Numbered], states: Mapping[Tensor, State]
) -> list[Numbered]:
    """Updates those that are small; returns the others.

    Args:
        group: the hyperparameters of a Muon group that `takes_small`.
        params: with gradients.
        states: the optimizer's.
    """
    layout, filtered = group["layout"], group["grokfast_lambda"] != 0
    counts, scale_of = StepCounts(), dict[tuple[int, int], float]()
    others, weights, grads, emas, momenta = [], [], [], [], []
    rows, columns, scales = [], [], []
    # A model of many small tensors spends its step here: nothing is called or made that can be
    # done without.
    for number, param in params:
        grad = param.grad
        assert grad is not None
        shape = _small_shape(param.shape, layout)
        if shape is None or not _is_simple(param, grad):
            others.append((number, param))
            continue
        state = states[param]
        momentum, ema = state.get("exp_avg"), state.get("exp_avg_sq")
        if momentum is None or filtered != (ema is not None) or "neuron_moment" in state:
            momentum, ema, _ = begun(Held(param, param, grad, None), state, group)
        _, state["step"] = counts.one_more(state.get("step"))
        if shape not in scale_of:
            scale_of[shape] = update_scale(group["scale"], *shape, transposed=group["transposed"])
        weights.append(param)
        grads.append(grad)
        momenta.append(momentum)
        if ema is not None:
            emas.append(ema)
        rows.append(shape[0])
        columns.append(shape[1])
        scales.append(scale_of[shape])
    if weights:
        small_muon_step_(
            weights,
            grads,
            emas,
            momenta,
            rows=rows,
            columns=columns,
            scales=scales,
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            alpha=group["grokfast_alpha"],
            lamb=group["grokfast_lambda"],
            beta=group["momentum"],
            nesterov=group["nesterov"],
        )
    return others


def _is_simple(param: Tensor, grad: Tensor) -> bool:
    return (
        param.is_cpu
        and type(param) in PLAIN
        and param.dtype is grad.dtype is torch.float32
        and param.is_contiguous()
        and grad.is_contiguous()
    )


@functools.cache
def _small_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int] | None:
    """m and n of the matrices that lie one after the other in a parameter, if they are small."""
    count, m, n = matrix_shape(*block_of(shape, layout))
    small = min(m, n) <= _ORDER and max(m, n) <= _LENGTH
    return (m, n) if count == 1 and small else None
