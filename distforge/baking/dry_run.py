"""``--dry-run``: what a run would do, before it does anything."""

from __future__ import annotations

import json

import torch
from transformers import AutoConfig, PretrainedConfig

from distforge.baking.config import Step1Config
from distforge.config import dump_toml
from distforge.errors import InputError
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import read_world_size
from distforge.training.engine_config import resolve_dtype
from distforge.training.memory import estimate_memory, shape_of

# fp32 numbers per parameter: Adam's two moments; Muon's momentum and, with the filter, its EMA.
_ADAMW_BUFFERS = 2.0


def describe_run(config: Step1Config) -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    Raises:
        InputError: the champion's shape cannot be read.
    """
    ranks = read_world_size()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(config.engine.dtype, device)
    accumulation = max(1, config.training.micro_batches // ranks)
    parts = [
        "# resolved configuration",
        dump_toml(config),
        f"# {ranks} rank(s), {device.type}, {dtype}, "
        f"{'DeepSpeed' if config.engine.uses_deepspeed(ranks) else 'one plain process'}",
    ]
    if config.engine.uses_deepspeed(ranks):
        settings = deepspeed_config(config.engine, dtype, ranks, accumulation)
        parts.append(json.dumps(settings, indent=2))
    parts.append("# estimated memory per rank, MB")
    parts += [
        f"{kind:12} {size / 1e6:10.1f}" for kind, size in _memory(config, dtype, ranks).items()
    ]
    return "\n".join(parts)


def _memory(config: Step1Config, dtype: str, ranks: int) -> dict[str, int]:
    shape = _shape(config)
    hidden, layers, width = shape["hidden_size"], shape["num_layers"], shape["intermediate_size"]
    parameters = shape["vocab_size"] * hidden + layers * (4 * hidden**2 + 3 * hidden * width)
    filtered = config.optimizer.muon_grokfast.grokfast_lambda > 0
    buffers = _ADAMW_BUFFERS if config.optimizer.name == "adamw" else 1.0 + filtered
    # The longest examples decide the peak: a micro-batch of them all at max_length.
    per_micro_batch = -(-config.training.batch_size // config.training.micro_batches)
    return estimate_memory(
        num_parameters=parameters,
        config=config.engine,
        dtype=dtype,
        world_size=ranks,
        optimizer_buffers_per_parameter=buffers,
        micro_batch_tokens=per_micro_batch * config.data.max_length,
        sequence_length=config.data.max_length,
        **shape,
    )


def _shape(config: Step1Config) -> dict[str, int]:
    if config.champion.make:
        recipe = config.champion.recipe
        return {
            "hidden_size": recipe.architecture.hidden_size,
            "num_layers": recipe.architecture.num_layers,
            "intermediate_size": recipe.architecture.intermediate_size,
            "num_heads": recipe.architecture.num_heads,
            "vocab_size": recipe.vocab_size,
        }
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(config.champion.path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the shape of champion {config.champion.path!r} cannot be read ({error}); a dry run "
            "needs a Hugging Face directory"
        ) from error
    return shape_of(found)
