"""Training with MuonGrokfast in float64, by the formulas and with none of distforge's code.

Gradients are torch's, of a double-precision copy of the model, one example at a time; clipping,
Grokfast, Muon, AdamW and the schedule are numpy.
"""

import numpy as np
import torch
from torch import nn

from tests.tiny_models import tiny_llama
from tests.training_cases import MAX_GRAD_NORM, STEPS, VOCAB, count_targets, examples
from tests.unit.optim.oracle import MuonOracle

# As MUON in training_cases, spelled out again: an oracle that reads the configuration of what it
# judges would agree with a wrong default.
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 0.02, 1e-3, 0.01
ALPHA, LAMBDA, BETA = 0.98, 0.2, 0.95
# Linear warm-up over 2 steps, then linearly down to a tenth at step 5.
LR_FACTORS = (0.5, 1.0, 1.0, 0.7, 0.4)


class AdamWOracle:
    """One tensor, Loshchilov & Hutter 2019, algorithm 2."""

    def __init__(self, weight: np.ndarray, *, decay: float) -> None:
        self.weight, self.decay = weight.astype(np.float64), decay
        self.first = np.zeros_like(self.weight)
        self.second = np.zeros_like(self.weight)
        self.steps = 0
        self.lr = 0.0

    def step(self, grad: np.ndarray) -> np.ndarray:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.95 * self.second + 0.05 * grad**2
        mean = self.first / (1 - 0.9**self.steps)
        spread = np.sqrt(self.second / (1 - 0.95**self.steps))
        self.weight = self.weight * (1 - self.lr * self.decay) - self.lr * mean / (spread + 1e-8)
        return self.weight


def is_hidden_matrix(name: str) -> bool:
    """Of a Llama: the projections of attention and MLP."""
    return name.endswith("_proj.weight")


def muon_oracle(
    steps: int = STEPS, lamb: float = LAMBDA, max_norm: float = MAX_GRAD_NORM
) -> dict[str, torch.Tensor]:
    """The weights after ``steps`` of the tiny problem, in float64."""
    model = tiny_llama(VOCAB).train()
    model = model.double()
    oracles: dict[str, MuonOracle | AdamWOracle] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy().copy()
        if is_hidden_matrix(name):
            oracles[name] = MuonOracle(
                weight,
                lr=0.0,
                alpha=ALPHA,
                lamb=lamb,
                beta=BETA,
                nesterov=True,
                scale="spectral",
                weight_decay=WEIGHT_DECAY,
            )
        else:
            oracles[name] = AdamWOracle(weight, decay=WEIGHT_DECAY if weight.ndim > 1 else 0.0)
    for step in range(steps):
        gradients = _clipped_gradients(model, step, max_norm)
        for name, parameter in model.named_parameters():
            oracle = oracles[name]
            base = MUON_LR if is_hidden_matrix(name) else ADAMW_LR
            oracle.lr = base * LR_FACTORS[step]
            parameter.data = torch.from_numpy(oracle.step(gradients[name]).copy())
    return {name: value.detach() for name, value in model.state_dict().items()}


def _clipped_gradients(model: nn.Module, step: int, max_norm: float) -> dict[str, np.ndarray]:
    total = torch.zeros((), dtype=torch.float64)
    for ids, prompt in examples(step):
        logits = model(input_ids=ids[None]).logits[0]
        total = total + nn.functional.cross_entropy(
            logits[prompt - 1 : -1], ids[prompt:], reduction="sum"
        )
    model.zero_grad()
    (total / count_targets(step)).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {name: g * min(1.0, max_norm / norm) for name, g in gradients.items()}
