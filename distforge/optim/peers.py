"""The ranks that share the work of a step, and the dtype on which they agree for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from distforge.errors import InputError
from distforge.optim.precision import fastest_dtype

# Whoever multiplies one of them fast can compute in those before it as well.
_ORDER = (torch.float32, torch.float16, torch.bfloat16)


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
