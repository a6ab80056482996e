"""In which dtype the optimizer keeps what must not be rounded, which one a processor multiplies
fastest, and on which one the ranks that share the work of a step agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.errors import InputError

# Turing's small cards have none: float16 is hardly faster there, and gives NaN on GTX 16 cards.
_WITHOUT_TENSOR_CORES = ("GTX 16", "GeForce MX")

# Whoever multiplies one of them fast can compute in those before it as well.
_ORDER = (torch.float32, torch.float16, torch.bfloat16)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own dtype where that is wider."""
    dtype = tensor.dtype
    return dtype if dtype is torch.float32 else torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """In `wide_dtype`: itself, or a copy where it is narrower."""
    return tensor if tensor.dtype is torch.float32 else tensor.to(wide_dtype(tensor))


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
    return torch.float32 if has_no_tensor_cores(device) else torch.float16


def has_no_tensor_cores(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU without them: one before Volta, or of Turing's small ones."""
    if device.type != "cuda":
        return False
    old = torch.cuda.get_device_capability(device) < (7, 0)
    return old or any(card in torch.cuda.get_device_name(device) for card in _WITHOUT_TENSOR_CORES)


@dataclass(frozen=True)
class Peers:
    """The ranks that share the work of a group.

    device: where matrices are put together and orthogonalised. Offloaded shards lie elsewhere.
    auto_dtype: what ``ns_dtype`` = "auto" is on all of them.
    """

    device: torch.device
    auto_dtype: torch.dtype
    group: dist.ProcessGroup | None = None
    rank: int = 0
    size: int = 1

    def iteration_dtype(self, ns_dtype: str) -> torch.dtype:
        """The dtype of Newton-Schulz's products, by its name in MuonGrokfastConfig."""
        named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return self.auto_dtype if ns_dtype == "auto" else named[ns_dtype]


def alone(device: torch.device) -> Peers:
    """One process that shares nothing."""
    return Peers(device, fastest_dtype(device))


def together(process_group: dist.ProcessGroup | None, device: torch.device) -> Peers:
    """The ranks of ``process_group`` (None: all); collective.

    What one sends another has to expect, so they agree on the dtype here: on processors of several
    kinds, the fastest of the least able.

    Raises:
        InputError: torch.distributed is not initialized.
    """
    if not dist.is_initialized():
        raise InputError("there is no process group: call torch.distributed.init_process_group.")
    level = torch.tensor(_ORDER.index(fastest_dtype(device)), device=device)
    dist.all_reduce(level, op=dist.ReduceOp.MIN, group=process_group)
    rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
    return Peers(device, _ORDER[int(level)], process_group, rank, size)
