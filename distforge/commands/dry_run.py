"""``--dry-run``: what a step would do, how it is computed, and what memory it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from distforge.baking import Step1Config
from distforge.config import dump_toml
from distforge.errors import InputError
from distforge.optim import OptimizerConfig
from distforge.quietstar import Step2Config
from distforge.quietstar.inputs import load_inputs
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import read_world_size
from distforge.training.engine_config import EngineConfig, resolve_dtype
from distforge.training.memory import estimate_memory, shape_of

# fp32 numbers per parameter: Adam's two moments; Muon's momentum and, with the filter, its EMA.
_ADAMW_BUFFERS = 2.0
# Tokens of an answer, about.
_LONGEST_TARGET = 8


def describe_step1(config: Step1Config) -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    Raises:
        InputError: the champion's shape cannot be read.
    """
    shape = _shape(config)
    hidden, layers, width = shape["hidden_size"], shape["num_layers"], shape["intermediate_size"]
    return _describe(
        config,
        config.engine,
        config.optimizer,
        shape,
        shape["vocab_size"] * hidden + layers * (4 * hidden**2 + 3 * hidden * width),
        batch_size=config.training.batch_size,
        micro_batches=config.training.micro_batches,
        row_tokens=config.data.max_length,
    )


def describe_step2(config: Step2Config) -> str:
    """The same of step 2, and how many items and steps there are.

    Raises:
        InputError: the baked model or the data cannot be used.
    """
    inputs, episodes = load_inputs(config), config.episodes
    # A row is a text with all its thoughts.
    longest = max(len(item.text) for item in inputs.items)
    row = longest + episodes.thoughts * (config.thought.max_tokens + 2 + _LONGEST_TARGET)
    return _describe(
        config,
        config.engine,
        config.optimizer,
        shape_of(inputs.baked.model.config),
        inputs.baked.model.num_parameters(),
        batch_size=episodes.batch_size,
        micro_batches=episodes.micro_batches,
        row_tokens=row,
        notes=(
            f"{len(inputs.items)} items, {len(inputs.heldout)} held out; "
            f"{episodes.loop.max_steps} steps of {episodes.batch_size} episodes, "
            f"{episodes.thoughts} thoughts each, by {config.rollouts.num_actors} rollout actors; "
            "the frozen baked model is not in the estimate"
        ),
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


def _describe(
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
