"""DeepSpeed's ZeRO: where it keeps the elements of each parameter.

The one file that knows DeepSpeed's private layout. It was written for the versions below and checks
what it assumes, element by element, each time an optimizer is bound; a layout that is not
understood is an error, never a guess. It reads attributes of an object that it is given and
imports nothing of DeepSpeed.

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    bind_zero(optimizer, engine)

- ZeRO 1, 2 and the BF16 optimizer flatten each group, pad it, and give every rank one equal part.
- ZeRO 3 gives every rank an equal part of every parameter and flattens a group's parts.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.optim.layout import FlatShard, Fragment, Piece
from distforge.optim.muon_grokfast import MuonGrokfast

# Of these the layout was read and is tested.
SUPPORTED_DEEPSPEED = r"0\.19\.\d+.*"


def bind_zero(optimizer: MuonGrokfast, zero: Any) -> None:
    """Tell ``optimizer`` what the flat tensors are that DeepSpeed has given it; collective.

    Call it once, right after ``deepspeed.initialize`` and before any checkpoint is loaded. At
    stage 0 gradients are whole on every rank and the ranks share the work.

    Args:
        optimizer: the client optimizer that ``deepspeed.initialize`` was given.
        zero: the engine, or the ZeRO optimizer that the engine has as ``optimizer``.

    Raises:
        InputError: another version of DeepSpeed, an option under which the layout is not known
            (``round_robin_gradients``, offload to NVMe, experts, float16 by autocast), or
            a layout that is not what it should be.
    """
    zero = getattr(zero, "optimizer", zero) if hasattr(zero, "module") else zero
    if zero is optimizer:
        if dist.is_initialized() and dist.get_world_size() > 1:
            optimizer.share_work()
        return
    _require_version(importlib.metadata.version("deepspeed"))
    readers: dict[str, Callable[[Any, Any], list[FlatShard]]] = {
        "DeepSpeedZeroOptimizer": _stage_1_and_2,
        "DeepSpeedZeroOptimizer_Stage3": _stage_3,
        "BF16_Optimizer": _bf16_optimizer,
    }
    kind = type(zero).__name__
    if kind not in readers:
        raise InputError(
            f"DeepSpeed wrapped the optimizer in {kind}, whose layout is not known: "
            f"use ZeRO 0 to 3, or one of {', '.join(readers)}."
        )
    if zero.optimizer is not optimizer:
        raise InputError(
            f"DeepSpeed updates with {type(zero.optimizer).__name__}, not with the optimizer to "
            "bind: pass it to deepspeed.initialize, with zero_allow_untested_optimizer = true and "
            "zero_force_ds_cpu_optimizer = false."
        )
    _refuse_options(zero)
    shards = readers[kind](zero, zero.dp_process_group)
    _require_same_weights(zero, kind, shards)
    optimizer.attach_shards(shards, _model_device(shards), zero.dp_process_group)


def _require_version(version: str) -> None:
    if not re.fullmatch(SUPPORTED_DEEPSPEED, version):
        raise InputError(
            f"DeepSpeed {version} is installed, but MuonGrokfast knows how 0.19 lays out its "
            "shards: install deepspeed>=0.19,<0.20, or use ZeRO stage 0."
        )


def _refuse_options(zero: Any) -> None:
    groups = getattr(zero, "real_dp_process_group", [zero.dp_process_group])
    refused = {
        "round_robin_gradients": getattr(zero, "round_robin_gradients", False),
        "offload of the optimizer to NVMe": getattr(zero, "swap_optimizer", False),
        "experts with process groups of their own": any(
            group is not zero.dp_process_group for group in groups
        ),
        "float16 by torch_autocast (use the fp16 section)": getattr(
            zero, "torch_autocast_gradscaler", None
        )
        is not None,
        "ZenFlow": getattr(zero, "zenflow", False),
    }
    for option, present in refused.items():
        if present:
            raise InputError(
                f"MuonGrokfast does not work under ZeRO with {option}: take it out of the "
                "DeepSpeed configuration."
            )


def _stage_1_and_2(zero: Any, process_group: Any) -> list[FlatShard]:
    return [
        FlatShard(flat, _pieces_of_a_group(zero, params, offsets, flat.numel(), process_group))
        for flat, params, offsets in zip(
            zero.single_partition_of_fp32_groups,
            zero.round_robin_bit16_groups,
            zero.round_robin_bit16_offsets,
            strict=True,
        )
    ]


def _bf16_optimizer(zero: Any, process_group: Any) -> list[FlatShard]:
    shards = []
    for flat, params in zip(zero.fp32_groups_flat_partition, zero.bf16_groups, strict=True):
        offsets = [0, *accumulate(param.numel() for param in params)][:-1]
        pieces = _pieces_of_a_group(zero, params, offsets, flat.numel(), process_group)
        shards.append(FlatShard(flat, pieces))
    return shards


def _pieces_of_a_group(
    zero: Any,
    params: Sequence[nn.Parameter],
    offsets: Sequence[int],
    partition: int,
    process_group: Any,
) -> tuple[Piece, ...]:
    """Parameters one after another in a group that is cut into equal partitions, one a rank."""
    size = dist.get_world_size(process_group)
    pieces = []
    for param, offset in zip(params, offsets, strict=True):
        held = [
            _overlap(offset, param.numel(), rank * partition, partition) for rank in range(size)
        ]
        pieces.append(Piece(zero.param_names[param], param, tuple(param.shape), tuple(held)))
        mapping = getattr(param, "_hp_mapping", None)
        mine = held[dist.get_rank(process_group)]
        told = None if mapping is None else mapping.get_hp_fragment_address()
        if (told is None) != (not mine) or (
            told is not None and (told.start, told.numel) != (mine[0].start, mine[0].numel)
        ):
            raise _unknown(f"parameter {pieces[-1].name} is mapped to {told}, not to {mine}")
    return tuple(pieces)


def _overlap(offset: int, numel: int, start: int, length: int) -> tuple[Fragment, ...]:
    begin, end = max(offset, start), min(offset + numel, start + length)
    if begin >= end:
        return ()
    return (Fragment(0, begin - start, begin - offset, end - begin),)


def _stage_3(zero: Any, process_group: Any) -> list[FlatShard]:
    size = dist.get_world_size(process_group)
    shards = []
    for number, (flat, params) in enumerate(
        zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    ):
        pieces, start = [], 0
        for param in params:
            share = -(-param.ds_numel // size)
            position = zero.grad_position[zero.get_param_id(param)]
            if param.partition_numel() != share or position != [number, start, share]:
                raise _unknown(
                    f"parameter {zero.param_names[param]} stands at {position} with "
                    f"{param.partition_numel()} elements, not at {[number, start, share]}"
                )
            held = tuple(_overlap(0, param.ds_numel, rank * share, share) for rank in range(size))
            held = tuple(
                tuple(Fragment(0, start, f.offset, f.numel) for f in fragments)
                for fragments in held
            )
            pieces.append(Piece(zero.param_names[param], param, tuple(param.ds_shape), held))
            start += share
        if flat.numel() != start:
            raise _unknown(f"sub-group {number} has {flat.numel()} elements, not {start}")
        shards.append(FlatShard(flat, tuple(pieces)))
    return shards


def _require_same_weights(zero: Any, kind: str, shards: list[FlatShard]) -> None:
    """Every fragment must hold the very weights of its parameter: proof of the layout."""
    rank = dist.get_rank(zero.dp_process_group)
    for shard in shards:
        for piece, fragment in _mine(shard, rank):
            master = shard.tensor[fragment.start : fragment.start + fragment.numel]
            if kind == "DeepSpeedZeroOptimizer_Stage3":
                parameter: Any = piece.parameter  # ZeRO 3 gives it attributes
                weights = parameter.ds_tensor[: fragment.numel]
            else:
                flat = piece.parameter.detach().view(-1)
                weights = flat[fragment.offset : fragment.offset + fragment.numel]
            if not torch.equal(master.detach().to(weights.device, weights.dtype), weights):
                raise _unknown(f"the master weights of {piece.name} are not where they should be")


def _mine(shard: FlatShard, rank: int) -> Iterator[tuple[Piece, Fragment]]:
    for piece in shard.pieces:
        for fragment in piece.held[rank]:
            yield piece, fragment


def _model_device(shards: list[FlatShard]) -> torch.device:
    """Where the model computes, though its masters may be offloaded."""
    parameter: Tensor = shards[0].pieces[0].parameter
    return parameter.device


def _unknown(what: str) -> InputError:
    return InputError(
        f"DeepSpeed's layout is not the one that MuonGrokfast knows ({what}): "
        "use a DeepSpeed that it was tested with, or ZeRO stage 0."
    )


def load_universal(
    optimizer: torch.optim.Optimizer, engine: Any, directory: str, tag: str
) -> dict[str, Any]:
    """Load a universal checkpoint into any number of ranks and any of ZeRO 1 to 3; collective.

    ``python -m deepspeed.checkpoint.ds_to_universal`` makes one from a checkpoint that DeepSpeed
    saved. What DeepSpeed does wrong for optimizers with several kinds of groups is put right: at
    stage 3 it gives every group the hyperparameters of the first one, and one ``step`` to all.
    Hyperparameters stay as they are in ``optimizer``; a schedule sets the learning rate.

    Universal checkpoints know two buffers a parameter. The third one of ``grokfast_on_adamw``
    starts anew from the next gradient.

    Args:
        optimizer: the engine's client optimizer, bound by `bind_zero` if it is a MuonGrokfast.
        directory, tag: as for ``engine.load_checkpoint``.

    Returns:
        The client state that was saved with the checkpoint.
    """
    kept = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    before = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = True
    try:
        _, client_state = engine.load_checkpoint(directory, tag=tag)
    finally:
        engine._config.load_universal_checkpoint = before
    for group, hyperparameters in zip(optimizer.param_groups, kept, strict=True):
        for name in set(group) - set(hyperparameters) - {"params"}:
            del group[name]
        group.update(hyperparameters)
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).clone()
    return dict(client_state or {})
