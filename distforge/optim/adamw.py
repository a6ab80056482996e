"""AdamW of many tensors at once, with states that may be wider than the parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from distforge.ops.rounding import generator_for, round_stochastically_

# Where torch has AdamW as one kernel for a whole list: tensor by tensor it is a dozen small ones
# each, which costs a GPU more in launches than in work, and a CPU nine times the time.
_FUSED_DEVICES = ("cpu", "cuda")


class AdamWEntry(NamedTuple):
    """A tensor to update and what belongs to it, all of one shape and on one device.

    param: any floating dtype. grad, exp_avg, exp_avg_sq: of one dtype, float32 or wider.
    step: number of this update, >= 1.
    noise: what the stochastic rounding of a 16-bit ``param`` depends on; None rounds to nearest.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
    noise: tuple[int, ...] | None = None


def adamw_update_(
    entries: Sequence[AdamWEntry],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    cautious: bool = False,
) -> None:
    """Updates each ``param``, ``exp_avg`` and ``exp_avg_sq`` in place (Loshchilov & Hutter 2019).

    It is torch.optim's AdamW that does it, the fused one where that is possible, so results are
    bitwise the same where the dtypes are. A parameter that is narrower than its state is updated
    in the state's dtype and rounded once. ``cautious``: decay only where it has the direction of
    the update (Chen et al. 2025, "Cautious weight decay", arXiv 2510.12402).
    """
    alike: dict[tuple[torch.device, torch.dtype], list[AdamWEntry]] = defaultdict(list)
    for entry in entries:
        alike[entry.param.device, entry.exp_avg.dtype].append(entry)
    for (device, _), group in alike.items():
        wide = [entry.param.to(entry.exp_avg.dtype) for entry in group]
        before = [weight.clone() for weight in wide] if cautious and weight_decay else []
        fused = _can_fuse(group)
        # torch's function counts up before it updates, the kernel under it does not.
        counts = [entry.step if fused else entry.step - 1 for entry in group]
        steps = torch.tensor(counts, dtype=torch.float32, device=device).unbind()
        (torch._fused_adamw_ if fused else adamw)(
            wide,
            [entry.grad for entry in group],
            [entry.exp_avg for entry in group],
            [entry.exp_avg_sq for entry in group],
            [],
            list(steps),
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=lr,
            weight_decay=0.0 if before else weight_decay,
            eps=eps,
            maximize=False,
        )
        for entry, updated, weight in zip(group, wide, before, strict=False):
            agreed = (weight * entry.exp_avg) >= 0
            updated.sub_(weight.mul_(agreed), alpha=lr * weight_decay)
        for entry, updated in zip(group, wide, strict=True):
            if updated is entry.param:
                continue
            if entry.noise is None:
                entry.param.copy_(updated)
            else:
                generator = generator_for(device, *entry.noise)
                round_stochastically_(entry.param, updated, generator)


def _can_fuse(entries: Sequence[AdamWEntry]) -> bool:
    """Whether torch's fused kernel is right for them: it takes memory as it comes, whatever the
    strides."""
    return entries[0].param.device.type in _FUSED_DEVICES and all(
        tensor.is_contiguous()
        for entry in entries
        for tensor in (entry.param, entry.grad, entry.exp_avg, entry.exp_avg_sq)
    )
