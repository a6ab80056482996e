"""The arithmetic of the policy gradient, on log-probabilities alone: no model, no batch layout.

Three policies: *behaviour* wrote the thought (maybe some updates ago), *proximal* is the learner's
as the step began, *current* is the one that is differentiated. The importance weight corrects
proximal for behaviour and is cut from above; PPO's ratio holds current near proximal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    current: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    max_importance: float,
    proximal: Tensor | None = None,
) -> Tensor:
    """Loss of each thought token, whose gradient is minus the policy gradient; same shape.

    Args:
        current: log-probabilities of the tokens, with a gradient.
        behaviour: the same under the policy that drew them.
        advantages: of each token's thought.
        clip_range, max_importance: see `ObjectiveConfig`.
        proximal: log-probabilities under the policy that the step began with; by default the
            current ones, as where a batch is used for one update.

    Source: PPO (arXiv 1707.06347), with the decoupled objective of arXiv 2110.00641.
    """
    proximal = current.detach() if proximal is None else proximal
    weight = (proximal - behaviour).exp().clamp(max=max_importance)
    ratio = (current - proximal).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -weight * torch.minimum(ratio * advantages, clipped * advantages)


def exact_kl(current: Tensor, reference: Tensor) -> Tensor:
    """KL(current ‖ reference) in nats, from log-probabilities (..., V); shape (...).

    A token that the current policy never draws (-inf) counts nothing.
    """
    drawn = current > -torch.inf
    # Masked before the product: the gradient of 0 * inf is not a number.
    gap = torch.where(drawn, current, 0.0) - torch.where(drawn, reference, 0.0)
    return (current.exp() * gap).sum(dim=-1)


def k1_kl(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Unbiased estimate of the same from the sampled tokens: their log-ratio, any sign."""
    return log_probs - reference


def effective_sample_fraction(weight_sum: float, square_sum: float, count: float) -> float:
    """ESS / N in (0, 1] of ``count`` thoughts whose importance weights have these sums.

    ``(Σw)² / (N Σw²)``; 1 where every thought is fresh, 0 where no weight is left.
    """
    return weight_sum**2 / (count * square_sum) if square_sum > 0 else 0.0
