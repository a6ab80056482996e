"""In which dtype the optimizer keeps what must not be rounded, and which one a processor multiplies
fastest."""

from __future__ import annotations

import torch
from torch import Tensor

# Turing's small cards have none: float16 is hardly faster there, and gives NaN on GTX 16 cards.
_WITHOUT_TENSOR_CORES = ("GTX 16", "GeForce MX")


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own dtype where that is wider."""
    dtype = tensor.dtype
    return dtype if dtype is torch.float32 else torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """In `wide_dtype`: itself, or a copy where it is narrower."""
    return tensor if tensor.dtype is torch.float32 else tensor.to(wide_dtype(tensor))


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it, and torch and oneDNN may use them.

    ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA can forbid it. Elsewhere it is many times slower.
    """
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not has or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The floating dtype of at least 16 bits whose products are fastest on a device.

    bfloat16 where the hardware multiplies it, float16 on a GPU that has tensor cores for that alone
    (emulated bfloat16 is slower than float32), float32 on others.
    """
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if has_no_tensor_cores(device) else torch.float16


def has_no_tensor_cores(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU without them: one before Volta, or of Turing's small ones."""
    if device.type != "cuda":
        return False
    old = torch.cuda.get_device_capability(device) < (7, 0)
    return old or any(card in torch.cuda.get_device_name(device) for card in _WITHOUT_TENSOR_CORES)
