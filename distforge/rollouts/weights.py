"""Weights on their way from the learner to the engines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor, nn


@dataclass(frozen=True)
class PackedWeights:
    """Weights as flat arrays of bytes, which Ray copies into shared memory once and maps.

    Tied weights share an array. ``layout``: name, dtype, shape and index into ``arrays``.
    """

    layout: tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]
    arrays: tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]


class Learner(Protocol):
    """What has whole weights: `TrainingEngine`, for one."""

    def whole_model(self) -> AbstractContextManager[nn.Module]:
        """The model with whole weights on every rank; collective."""
        ...


def gather_weights(engine: Learner) -> Mapping[str, Tensor]:
    """Whole weights and persistent buffers, by the model's own names, on the CPU; collective.

    Every rank gets them, at any ZeRO stage. They may be the model's own memory: publish or copy
    them before the next optimizer step.
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
        digest.update(_as_bytes(tensor).data)
    return digest.hexdigest()


def pack(weights: Mapping[str, Tensor]) -> PackedWeights:
    """CPU tensors without a copy, where they are contiguous."""
    layout: list[tuple[str, torch.dtype, tuple[int, ...], int]] = []
    arrays: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    indices: dict[Any, int] = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        # Empty tensors have no place of their own.
        key = place if tensor.numel() else len(arrays)
        if key not in indices:
            indices[key] = len(arrays)
            arrays.append(_as_bytes(tensor))
        layout.append((name, tensor.dtype, tuple(tensor.shape), indices[key]))
    return PackedWeights(tuple(layout), tuple(arrays))


def unpack(packed: PackedWeights) -> dict[str, Tensor]:
    """Tensors over the packed memory, which may be read-only: whoever wants to keep them copies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = [torch.from_numpy(array) for array in packed.arrays]
    weights = {}
    for name, dtype, shape, index in packed.layout:
        # numpy gives an empty array a stride of 0, which torch does not view as another dtype.
        values = flat[index].view(dtype) if len(flat[index]) else torch.empty(0, dtype=dtype)
        weights[name] = values.reshape(shape)
    return weights


def _as_bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # numpy has no bfloat16; bytes are bytes.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
