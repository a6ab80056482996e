"""Before a step: are all gradients finite, and do the ranks that share its work agree on them?"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.errors import InputError
from distforge.optim.precision import Peers, wide_dtype


def require_usable_gradients(groups: list[dict[str, Any]], peers: Peers | None) -> None:
    """Raises, on all ranks alike, unless every gradient of the groups can be used.

    Raises:
        InputError: a sparse gradient, or ranks that have gradients for different parameters.
        FloatingPointError: a gradient that is infinite or not a number.
    """
    named = [
        (group.get("param_names", range(len(group["params"])))[index], param.grad)
        for group in groups
        for index, param in enumerate(group["params"])
        if param.grad is not None
    ]
    for name, grad in named:
        if grad.is_sparse:
            raise InputError(
                f"parameter {name} has a sparse gradient: make its embedding with sparse=False."
            )
    bad = _first_not_finite(named)
    elsewhere = _on_other_ranks(bad is not None, len(named), peers)
    if bad is None and not elsewhere:
        return
    where = f"the gradient of parameter {bad}" if bad is not None else "a gradient on another rank"
    raise FloatingPointError(
        f"{where} is not finite; no weight has changed: "
        "drop this batch, or lower the learning rate or the loss scale."
    )


def _first_not_finite(named: list[tuple[Any, Tensor]]) -> Any | None:
    if _all_finite([grad for _, grad in named]):
        return None
    return next((name for name, grad in named if not grad.isfinite().all()), None)


def _all_finite(grads: list[Tensor]) -> bool:
    """Whether they are, by what is quickest; False may mean that it has to be looked at closer."""
    if all(grad.device.type == "cpu" for grad in grads):
        # No sum with a term that is not finite is finite itself, and torch's largest magnitude
        # takes ten times as long on a CPU. That a sum of finite terms overflows is rare.
        sums = [grad.sum(dtype=wide_dtype(grad)) for grad in grads]
        return all(math.isfinite(value) for value in torch.stack(sums).tolist()) if sums else True
    # The largest magnitude, not the 2-norm: a legitimate gradient of 1e30 has no finite square.
    return bool(torch.nn.utils.get_total_norm(grads, math.inf).isfinite())


def _on_other_ranks(bad: bool, count: int, peers: Peers | None) -> bool:
    """Whether any rank has a bad gradient. A collective that only some ranks enter would hang, so
    it is also asked whether all have as many gradients."""
    if peers is None or peers.size == 1:
        return bad
    flags = torch.tensor([float(bad), count, -count], dtype=torch.float32, device=peers.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=peers.group)
    worst, most, fewest = flags.tolist()
    if most != -fewest:
        raise InputError(
            f"this rank has gradients for {count} parameters, others for {int(-fewest)} to "
            f"{int(most)}: every rank must use the same parameters in a step."
        )
    return worst > 0
