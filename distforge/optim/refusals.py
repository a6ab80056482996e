"""What a step or a loading refuses by one sentence, before anything has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distforge.errors import InputError
from distforge.optim.layout import FlatShard
from distforge.optim.peers import Peers
from distforge.optim.placement import mesh_of


def require_shard_gradients(group: dict[str, Any], shards: Mapping[int, FlatShard]) -> None:
    """A flat shard is updated as a whole or not at all."""
    missing = [p for p in group["params"] if id(p) in shards and p.grad is None]
    if missing:
        names = [piece.name for piece in shards[id(missing[0])].pieces]
        raise InputError(
            f"the shard of {names[0]} and {len(names) - 1} others has no gradient; no weight "
            "of this group has changed: run backward before step, or leave frozen parameters out."
        )


def require_whole_matrices(
    group: dict[str, Any], index: int, shards: Mapping[int, FlatShard], peers: Peers | None
) -> None:
    """NorMuon's moments are kept where the matrix is, and nowhere else."""
    if not group.get("neuron_beta"):
        return
    for param in group["params"]:
        mesh = mesh_of(param)
        ranks = mesh.size() if mesh is not None else peers.size if peers is not None else 1
        if id(param) in shards or ranks > 1:
            raise InputError(
                f"parameter group {index} with a parameter of shape {tuple(param.shape)} has "
                f"neuron_beta = {group['neuron_beta']}, which needs whole matrices on one process: "
                "set it to 0 where ranks share the work."
            )


def require_same_algorithms(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """What was Muon's momentum is not AdamW's."""
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=False)
    for index, (mine, saved) in enumerate(groups):
        if saved.get("algorithm") != mine["algorithm"]:
            raise InputError(
                f"group {index} was saved with algorithm = {saved.get('algorithm')!r}, but "
                f"this optimizer trains it with {mine['algorithm']!r}: "
                "build the optimizer as it was for the saved run."
            )


def refuse_capture() -> None:
    """Gradients are looked at, and that cannot be captured."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "MuonGrokfast.step cannot be captured in a CUDA graph, because it looks at the "
            "gradients before it changes a weight: capture forward and backward, and call step "
            "after them."
        )
