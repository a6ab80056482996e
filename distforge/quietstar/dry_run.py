"""``--dry-run`` of step 2: what a run would do, before it does anything."""

from __future__ import annotations

import json

import torch

from distforge.config import dump_toml
from distforge.quietstar.inputs import load_inputs
from distforge.quietstar.step2_config import Step2Config
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import read_world_size
from distforge.training.engine_config import resolve_dtype
from distforge.training.memory import estimate_memory, shape_of

# fp32 numbers per parameter: Adam's two moments; Muon's momentum and, with the filter, its EMA.
_ADAMW_BUFFERS = 2.0
# Tokens of an answer, about.
_LONGEST_TARGET = 8


def describe_run(config: Step2Config) -> str:
    """The resolved configuration, DeepSpeed's JSON, the items, and an estimate of memory per rank.

    Raises:
        InputError: the baked model or the data cannot be used.
    """
    ranks = read_world_size()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(config.engine.dtype, device)
    inputs = load_inputs(config)
    episodes, loop = config.episodes, config.episodes.loop
    parts = [
        "# resolved configuration",
        dump_toml(config),
        f"# {ranks} rank(s), {device.type}, {dtype}, {config.rollouts.num_actors} rollout actors",
        f"# {len(inputs.items)} items, {len(inputs.heldout)} held out; {loop.max_steps} steps of "
        f"{episodes.batch_size} episodes, {episodes.thoughts} thoughts each",
    ]
    if config.engine.uses_deepspeed(ranks):
        accumulation = max(1, episodes.micro_batches // ranks)
        settings = deepspeed_config(config.engine, dtype, ranks, accumulation)
        parts.append(json.dumps(settings, indent=2))
    parts.append("# estimated memory per rank, MB, without the frozen baked model")
    longest = max(len(item.text) for item in inputs.items)
    # A row is a text with all its thoughts.
    row = longest + episodes.thoughts * (config.thought.max_tokens + 2 + _LONGEST_TARGET)
    memory = estimate_memory(
        num_parameters=inputs.baked.model.num_parameters(),
        config=config.engine,
        dtype=dtype,
        world_size=ranks,
        optimizer_buffers_per_parameter=(
            _ADAMW_BUFFERS
            if config.optimizer.name == "adamw"
            else 1.0 + (config.optimizer.muon_grokfast.grokfast_lambda > 0)
        ),
        micro_batch_tokens=-(-episodes.batch_size // episodes.micro_batches) * row,
        sequence_length=row,
        **shape_of(inputs.baked.model.config),
    )
    parts += [f"{kind:12} {size / 1e6:10.1f}" for kind, size in memory.items()]
    return "\n".join(parts)
