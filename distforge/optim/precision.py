"""In which dtype the optimizer keeps what must not be rounded, and which one a processor multiplies
fastest."""

from __future__ import annotations

import torch
from torch import Tensor

# Turing's small cards have none: float16 would be coarser there and hardly faster.
_WITHOUT_TENSOR_CORES = ("GTX 16", "GeForce MX")


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own dtype where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; torch multiplies it many times slower elsewhere."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The floating dtype of at least 16 bits whose products are fastest on a device.

    bfloat16 where the hardware multiplies it, float16 on a GPU that has tensor cores for that alone
    (emulated bfloat16 is slower than float32), float32 on others.
    """
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    recent = torch.cuda.get_device_capability(device) >= (7, 0)
    small = any(card in torch.cuda.get_device_name(device) for card in _WITHOUT_TENSOR_CORES)
    return torch.float16 if recent and not small else torch.float32
