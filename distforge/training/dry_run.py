"""What a dry run says of any training: its settings, how it is computed, what memory it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from distforge.config import dump_toml
from distforge.optim import OptimizerConfig
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import read_world_size
from distforge.training.engine_config import EngineConfig, resolve_dtype
from distforge.training.memory import estimate_memory

# fp32 numbers per parameter: Adam's two moments; Muon's momentum and, with the filter, its EMA.
_ADAMW_BUFFERS = 2.0


def describe_training(
    config: Any,
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    shape: Mapping[str, int],
    num_parameters: int,
    *,
    batch_size: int,
    micro_batches: int,
    row_tokens: int,
    notes: str = "",
) -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    Args:
        config: the run's, whole.
        shape: of the model, see `shape_of`.
        batch_size, micro_batches: rows of a step over all ranks, and the portions they come in.
        row_tokens: of the longest row: a micro-batch of them all decides the peak.
        notes: a line of what else there is to know.
    """
    ranks = read_world_size()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(engine.dtype, device)
    sharded = engine.uses_deepspeed(ranks)
    parts = [
        "# resolved configuration",
        dump_toml(config),
        f"# {ranks} rank(s), {device.type}, {dtype}, "
        f"{'DeepSpeed' if sharded else 'one plain process'}",
    ]
    if notes:
        parts.append(f"# {notes}")
    if sharded:
        accumulation = max(1, micro_batches // ranks)
        parts.append(json.dumps(deepspeed_config(engine, dtype, ranks, accumulation), indent=2))
    filtered = optimizer.muon_grokfast.grokfast_lambda > 0
    memory = estimate_memory(
        num_parameters=num_parameters,
        config=engine,
        dtype=dtype,
        world_size=ranks,
        optimizer_buffers_per_parameter=(
            _ADAMW_BUFFERS if optimizer.name == "adamw" else 1.0 + filtered
        ),
        micro_batch_tokens=-(-batch_size // micro_batches) * row_tokens,
        sequence_length=row_tokens,
        **shape,
    )
    parts.append("# estimated memory per rank, MB")
    parts += [f"{kind:12} {size / 1e6:10.1f}" for kind, size in memory.items()]
    return "\n".join(parts)
