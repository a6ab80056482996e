"""What a thought is worth: how much better the text after it is predicted.

All are bounded: the logarithm of a probability has a heavy tail, and a few hopeless places would
drown the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.quietstar.config import RewardConfig
from distforge.thinking.places import TargetScores


def compute_rewards(
    config: RewardConfig,
    scores: TargetScores,
    targets: Tensor,
    without: Tensor | None = None,
) -> Tensor:
    """(N,) float32 rewards of N thoughts.

    Args:
        config: which reward, see `RewardConfig`.
        scores: of the (N, n) target tokens after the thought.
        targets: (N, n) int64, -100 where a target is shorter than n.
        without: (N, n), the log-probability of the same tokens without a thought, under the
            scorer; needed by "prediction_gain".

    Raises:
        InputError: a reward without what it needs.
    """
    there = targets != IGNORE_INDEX
    if config.kind == "exact_match":
        return (scores.hits | ~there).all(dim=1).float()
    if config.kind == "answer_probability":
        return torch.where(there, scores.log_probs, 0.0).sum(dim=1).exp()
    if without is None:
        raise InputError("the reward 'prediction_gain' needs predictions without thoughts as well")
    gain = scores.log_probs.clamp(min=config.floor) - without.clamp(min=config.floor)
    return torch.where(there, gain, 0.0).sum(dim=1)
