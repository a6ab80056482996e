"""Engines small enough to follow by hand, and weights for them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distforge.rollouts import RolloutRequest


def weights(version: int, size: int = 64) -> dict[str, Tensor]:
    """Different for every version; of several dtypes and shapes."""
    generator = torch.Generator().manual_seed(version)
    return {
        "matrix": torch.randn(size, size, generator=generator),
        "half": torch.randn(3, 5, generator=generator).bfloat16(),
        "scalar": torch.tensor(float(version)),
    }


def requests(step: int, batch_size: int) -> list[RolloutRequest]:
    ids = range(step * batch_size, (step + 1) * batch_size)
    return [RolloutRequest(i, 1000 + i, {"width": i % 3 + 1}) for i in ids]


class TinyEngine:
    """Multiplies random rows by the weights: sensitive to seed, weights and order of summation."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: value.clone() for name, value in weights.items()}

    def rollout(self, request: RolloutRequest) -> dict[str, Any]:
        torch.manual_seed(request.seed)
        rows = torch.randn(request.payload["width"], len(self.weights["matrix"]))
        return {
            "product": (rows @ self.weights["matrix"]).softmax(-1),
            "half": self.weights["half"].float().numpy(),
            "version": int(self.weights["scalar"]),
            "threads": torch.get_num_threads(),
        }


class SleepingEngine:
    """Costs ``payload`` seconds and no processor time."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.version = float(weights["scalar"])

    def rollout(self, request: RolloutRequest) -> dict[str, float]:
        time.sleep(request.payload)
        return {"version": self.version, "pid": os.getpid()}
