"""``--dry-run``: what a step, or the whole, would do, how it is computed, and in what memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distforge.baking import Step1Config
from distforge.champion.make import ChampionConfig
from distforge.champion.pretraining import ChampionRecipe
from distforge.config import dump_toml
from distforge.data import DataConfig, load_data
from distforge.errors import InputError
from distforge.models.skeleton import load_skeleton
from distforge.optim import OptimizerConfig
from distforge.pipeline import PipelineConfig, Stage, phase_3
from distforge.quietstar import Step2Config
from distforge.quietstar.inputs import load_inputs
from distforge.quietstar.rewarded import load_rewarded
from distforge.thinking.packing import best_width, rows_of
from distforge.thinking.positions import count_places
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import World, read_world_size
from distforge.training.engine_config import EngineConfig, resolve_dtype
from distforge.training.memory import estimate_memory, shape_of

# fp32 numbers per parameter: Adam's two moments; Muon's momentum and, with the filter, its EMA.
_ADAMW_BUFFERS = 2.0
# Tokens of an answer, about.
_LONGEST_TARGET = 8


def describe_step1(config: Step1Config, notes: str = "") -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    ``notes``: a line of what else there is to know. Of a champion that is not there, the shape is
    its recipe's, where the configuration has one of its own.

    Raises:
        InputError: the champion's shape cannot be read.
    """
    shape, num_parameters = _shape(config)
    return _describe(
        config,
        config.engine,
        config.optimizer,
        shape,
        num_parameters,
        micro_batches=config.training.micro_batches,
        micro_batch_tokens=config.data.max_length
        * -(-config.training.batch_size // config.training.micro_batches),
        row_tokens=config.data.max_length,
        notes=[notes, _absence(config.champion)],
    )


def describe_step2(config: Step2Config) -> str:
    """The same of step 2, and how many items and steps there are.

    Raises:
        InputError: the baked model or the data cannot be used.
    """
    inputs = load_rewarded(config) if config.reward.function else load_inputs(config)
    return _describe_learner(
        config,
        shape_of(inputs.baked.model.config),
        inputs.baked.model.num_parameters(),
        longest=max(len(item.text) for item in inputs.items),
        items=f"{len(inputs.items)} items, {len(inputs.heldout)} held out",
    )


def describe_step2_ahead(config: Step2Config, step1: Step1Config) -> str:
    """The same of a step 2 whose baked model is not there yet, as far as the configuration says it.

    Raises:
        InputError: the champion's shape, or the data, cannot be read.
    """
    data = config.data if config.data.is_given else step1.data
    items = f"free text in {config.text.path}" if config.task == "text" else _examples(data)
    shape, num_parameters = _shape(step1)
    return _describe_learner(config, shape, num_parameters, longest=data.max_length, items=items)


def _describe_learner(
    config: Step2Config, shape: Mapping[str, int], num_parameters: int, *, longest: int, items: str
) -> str:
    """``longest``: tokens of the longest text; ``items``: how many there are."""
    episodes, rollouts = config.episodes, config.rollouts
    tokens, row_tokens = _step2_rows(config, longest, shape["hidden_size"])
    # The reference, and what generates in the learner's process.
    copies = 1 + (rollouts.num_actors == 0) * (1 + (config.reward.kind == "prediction_gain"))
    is_adapted = config.adapter == "lora"
    if is_adapted and config.reward.function:  # its reference is the model without its adapter
        copies -= 1
    return _describe(
        config,
        config.engine,
        config.optimizer,
        shape,
        num_parameters,
        micro_batches=episodes.portions,
        micro_batch_tokens=tokens,
        row_tokens=row_tokens,
        frozen_copies=copies,
        adapter_rank=config.lora.rank if is_adapted else 0,
        notes=[
            f"{items}; {episodes.loop.max_steps} steps of {episodes.batch_size} episodes, "
            f"{episodes.thoughts} thoughts each, by {rollouts.num_actors} rollout actors"
        ],
    )


def _examples(data: DataConfig) -> str:
    if not data.path:
        return (
            f"{data.num_examples:,} examples made from seed {data.seed}, a tenth of them held out"
        )
    counts = Counter(example.split for example in load_data(data))
    return f"{counts['train']:,} examples to train on, {counts['heldout']:,} held out, {data.path}"


def _step2_rows(config: Step2Config, longest: int, hidden_size: int) -> tuple[int, int]:
    """Slots of a micro-batch of the longest texts with all their thoughts, and of one row of it."""
    is_text = config.task == "text"
    episodes, text = config.episodes, config.text.tokens if is_text else longest
    places = count_places(config.positions, text) if is_text else 1
    targets = config.positions.horizon - 1 if is_text else _LONGEST_TARGET
    branches = [config.thought.max_tokens + 2 + targets] * (places * episodes.thoughts)
    sizes = [(text, branches)] * -(-episodes.batch_size // episodes.portions)
    rows, longest_row = rows_of(sizes, best_width(sizes, hidden_size))
    return rows * longest_row, longest_row


def describe_pipeline(config: PipelineConfig) -> tuple[str, bool]:
    """Every stage of phase 3, and both steps; whether nothing stands in the way of running it.

    Trains nothing and writes nothing. What will be known only when an earlier stage has run is
    described from the configuration.

    Raises:
        InputError: what the descriptions of the steps raise.
    """
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    stages = phase_3(config, world)
    lines, possible, pending = ["# stages"], True, ""
    names = [stage.name for stage in stages]
    forced = config.forced_from
    for name, stage in zip(names, stages, strict=True):
        if forced in names and names.index(name) >= names.index(forced):
            line, runs = f"would be made again: --force-from {forced}", True
        else:
            line, runs, fine = _foretell(stage, pending)
            possible = possible and fine
        lines.append(f"{name:10} {line}")
        pending = pending or (name if runs else "")
    lines.append(f"{'report':10} would {'be made' if pending else 'be made where it is not there'}")
    parts = ["\n".join(lines), "# step 1"]
    parts.append(describe_step1(config.step1_config, _examples(config.data)))
    if (step2 := config.step2_config) is not None:
        there = possible and (Path(step2.baked) / "model" / "config.json").is_file()
        parts.append("# step 2")
        parts.append(
            describe_step2(step2) if there else describe_step2_ahead(step2, config.step1_config)
        )
    return "\n".join(parts), possible


def _foretell(stage: Stage, pending: str) -> tuple[str, bool, bool]:
    """What a run would do with a stage, whether it would run, and whether it can.

    ``pending``: the first earlier stage that would run.
    """
    try:
        found = stage.find()
    except InputError as error:
        return f"would be refused: {error}", False, False
    if found.state != "finished":
        goes = "resume" if found.state == "unfinished" else "be made"
        return f"would {goes}: {found.why}", True, True
    if pending:
        return f"would be skipped if {pending} comes out the same: {found.why}", True, True
    return f"would be skipped: {found.why}", False, True


def _shape(config: Step1Config) -> tuple[dict[str, int], int]:
    """The champion's shape, and how many parameters it has; tied ones count once."""
    if not _is_planned(config.champion):
        skeleton = load_skeleton(config.champion.path)
        return shape_of(skeleton.config), skeleton.num_parameters()
    recipe = config.champion.recipe
    arch = recipe.architecture
    kv_size = arch.hidden_size // arch.num_heads * arch.num_kv_heads
    shape = {
        "hidden_size": arch.hidden_size,
        "num_layers": arch.num_layers,
        "intermediate_size": arch.intermediate_size,
        "num_heads": arch.num_heads,
        "vocab_size": recipe.vocab_size,
        "kv_size": kv_size,
    }
    tables = recipe.vocab_size * (1 if arch.tie_word_embeddings else 2)
    attention, feed_forward = 2 * arch.hidden_size + 2 * kv_size, 3 * arch.intermediate_size
    return shape, arch.hidden_size * (tables + arch.num_layers * (attention + feed_forward))


def _is_planned(champion: ChampionConfig) -> bool:
    """Whether the recipe tells what the champion will be: it is not there, or to be made."""
    is_there = champion.path.startswith("hf://") or Path(champion.path).expanduser().exists()
    return champion.make or (not is_there and champion.recipe != ChampionRecipe())


def _absence(champion: ChampionConfig) -> str:
    if champion.make or not _is_planned(champion):
        return ""
    return (
        f"champion {champion.path!r} is not there, and this is planned for the one that "
        "champion.recipe makes: --champion.make has it made first, --champion.path names another"
    )


def _describe(
    config: Any,
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    shape: Mapping[str, int],
    num_parameters: int,
    *,
    micro_batches: int,
    micro_batch_tokens: int,
    row_tokens: int,
    frozen_copies: int = 0,
    adapter_rank: int = 0,
    notes: Sequence[str] = (),
) -> str:
    """The resolved configuration, DeepSpeed's JSON, and an estimate of memory per rank.

    Args:
        config: the run's, whole.
        shape: of the model, see `shape_of`.
        micro_batches: the portions that a step comes in, over all ranks.
        micro_batch_tokens, row_tokens: of a micro-batch of the longest rows, which decides the
            peak, and of one of them.
        frozen_copies: of the model, whole on each rank, that are not trained.
        adapter_rank: of what is trained instead of the model; 0 where that is trained itself.
        notes: lines of what else there is to know; empty ones are left out.
    """
    ranks = read_world_size()
    device = "cuda" if torch.cuda.is_available() or engine.dtype == "float16" else "cpu"
    # No CPU trains in float16: that is planned for a GPU elsewhere.
    is_half = engine.dtype == "float16"
    dtype = "float16" if is_half else resolve_dtype(engine.dtype, torch.device(device))
    sharded = engine.uses_deepspeed(ranks)
    parts = [
        "# resolved configuration",
        dump_toml(config),
        f"# {ranks} rank(s), {device}, {dtype}, {'DeepSpeed' if sharded else 'one plain process'}",
    ]
    parts += [f"# {note}" for note in notes if note]
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
        micro_batch_tokens=micro_batch_tokens,
        sequence_length=row_tokens,
        frozen_copies=frozen_copies,
        adapter_rank=adapter_rank,
        **shape,
    )
    parts.append("# estimated memory per rank, MB")
    parts += [f"{kind:12} {size / 1e6:10.1f}" for kind, size in memory.items()]
    return "\n".join(parts)
