"""Weights on their way from the learner to the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from torch import Tensor

if TYPE_CHECKING:  # actors import this module, and need neither transformers nor DeepSpeed
    from distforge.training.engine import TrainingEngine


def gather_weights(engine: TrainingEngine) -> Mapping[str, Tensor]:
    """Whole weights and persistent buffers, by the model's own names, on the CPU; collective.

    Every rank gets them. They may be the model's own memory: publish or copy them before the next
    optimizer step.
    """
    with engine.whole_model() as module:
        return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def checksum(weights: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes: XXH3, 128 bits as 32 hex digits.

    It tells versions apart and finds damage; it does not withstand an attacker.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(as_bytes(tensor).data)
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The values of a CPU tensor as a flat array of bytes, without a copy if it is contiguous."""
    # numpy has no bfloat16, bytes are bytes.
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
