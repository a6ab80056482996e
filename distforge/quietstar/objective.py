"""The arithmetic of the policy gradient, on log-probabilities alone: no model, no batch layout.

Two policies: *behaviour* wrote the thought, maybe some updates ago or in another precision;
*current* is the one that is differentiated. The importance weight corrects one for the other, token
by token, and is cut from above.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance(current: Tensor, behaviour: Tensor, max_importance: float) -> Tensor:
    """Weight of each token, from its log-probabilities under both policies; without a gradient."""
    return (current.detach() - behaviour).exp().clamp(max=max_importance)


def policy_loss(
    current: Tensor, behaviour: Tensor, advantages: Tensor, *, max_importance: float
) -> Tensor:
    """Loss of each thought token, whose gradient is minus the policy gradient; same shape.

    Args:
        current: log-probabilities of the tokens, with a gradient.
        behaviour: the same under the policy that drew them.
        advantages: of each token.
        max_importance: see `ObjectiveConfig`.

    Source: truncated importance weights, arXiv 1802.01561.
    """
    weight = importance(current, behaviour, max_importance)
    # Its value is 1, its gradient that of the log-probability.
    ratio = (current - current.detach()).exp()
    return -weight * ratio * advantages


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


def divergence_to_go(costs: Tensor, thought: Tensor, group: Tensor, *, own: bool) -> Tensor:
    """How much more than its peers' the divergence is that follows each token; the same shape (T,).

    A divergence summed over a thought depends on its tokens in two ways: each token's own term on
    the weights, and all later terms on which token was drawn. The gradient of the second is that of
    a reward of minus these terms, which every token before them earns. Compared with what the other
    thoughts of the group have to come from the same step on, nothing of it is noise that all share.

    Args:
        costs: (T,) nats of each token; those of a thought side by side, in order.
        thought: (T,) int64, which of the N thoughts each token is of, rising.
        group: (N,) int64, the place that each thought is at.
        own: whether a token's own cost counts: yes where that is sampled (k1), no where it is the
            mean over all tokens that could be drawn (exact).
    """
    lengths = thought.bincount(minlength=len(group))
    starts = lengths.cumsum(0) - lengths
    step = torch.arange(len(thought), device=thought.device) - starts[thought]
    grid = costs.new_zeros(len(group), int(lengths.max()) + 1, dtype=torch.float64)
    grid[thought, step] = costs.double()
    to_go = grid.flip(1).cumsum(1).flip(1)
    if not own:
        to_go = to_go - grid
    sums = to_go.new_zeros(int(group.max()) + 1, to_go.shape[1]).index_add(0, group, to_go)
    others = (group.bincount() - 1).clamp(min=1)[group, None]
    return (to_go - (sums[group] - to_go) / others)[thought, step].to(costs.dtype)


def effective_sample_fraction(weight_sum: float, square_sum: float, count: float) -> float:
    """ESS / N in (0, 1] of ``count`` tokens whose importance weights have these sums.

    ``(Σw)² / (N Σw²)``; 1 where every token is fresh, 0 where no weight is left.
    """
    return weight_sum**2 / (count * square_sum) if square_sum > 0 else 0.0
