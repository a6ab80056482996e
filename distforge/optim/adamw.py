"""One AdamW update of one tensor, with states that may be wider than the parameter."""

from __future__ import annotations

from torch import Tensor


def adamw_update_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Updates ``param``, ``exp_avg`` and ``exp_avg_sq`` in place (Loshchilov & Hutter 2019).

    Args:
        param: any shape and floating dtype.
        grad, exp_avg, exp_avg_sq: the same shape, all of one dtype, float32 or wider.
        step: number of this update, >= 1.

    The order of operations is that of torch.optim.AdamW on one tensor, so results are bitwise
    the same where the dtypes are.
    """
    beta1, beta2 = betas
    param.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    denominator = (exp_avg_sq.sqrt() / correction2**0.5).add_(eps)
    if param.dtype == exp_avg.dtype:
        param.addcdiv_(exp_avg, denominator, value=-lr / correction1)
    else:
        param.add_(exp_avg / denominator, alpha=-lr / correction1)
