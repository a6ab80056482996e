"""How much of a prediction comes from the thought: the mixing head of Quiet-STaR."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.thinking.language_model import Prediction


class MixingHead(nn.Module):
    """A weight in (0, 1) for the prediction with a thought, from two hidden states.

    A two-layer MLP on [h_base; h_thought], the final hidden states of the slot that predicts a
    token without the thought and of the one that predicts it with the thought (arXiv 2403.09629,
    section 4.3). Its last layer starts at zero, so the weight starts at ``initial_weight``
    everywhere.

    Raises:
        InputError: ``initial_weight`` outside (0, 1).
    """

    def __init__(self, hidden_size: int, initial_weight: float = 0.1) -> None:
        super().__init__()
        if not 0 < initial_weight < 1:
            raise InputError(
                f"initial_weight = {initial_weight} of the mixing head should be inside (0, 1); "
                "take mixing = false for predictions by the thought alone"
            )
        width = max(16, hidden_size // 2)
        self.inner = nn.Linear(2 * hidden_size, width)
        self.out = nn.Linear(width, 1)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.fill_(math.log(initial_weight / (1 - initial_weight)))

    def mix(self, base: Prediction, thought: Prediction) -> Tensor:
        """(S, V) float32 logits: the two predictions, mixed by the weights (`mix_logits`)."""
        return mix_logits(base.logits, thought.logits, self(base.hidden, thought.hidden))

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """(S, d) and (S, d) to (S,) float32 weights of the thought."""
        joined = torch.cat([base, thought], dim=-1).to(self.inner.weight.dtype)
        hidden = nn.functional.gelu(self.inner(joined))
        return self.out(hidden)[:, 0].float().sigmoid()


def mix_logits(base: Tensor, thought: Tensor, weight: Tensor) -> Tensor:
    """(S, V) float32: (1 − w) · base + w · thought, with w of shape (S,).

    The interpolation of log-probabilities in the paper's algorithm 1, up to a constant of each
    row: the softmax of the result is the renormalised mixture. w = 0 is the plain prediction.
    """
    return torch.lerp(base.float(), thought.float(), weight.float()[:, None])
