"""Rank 0's rollouts on every rank: plain lists and numbers travel, never pickled tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distforge.rollouts import Rollout
from distforge.training.distributed import World

_TENSORS = (
    ("rows", torch.int64),
    ("positions", torch.int64),
    ("tokens", torch.int64),
    ("lengths", torch.int64),
    ("closed", torch.bool),
    ("log_probs", torch.float32),
    ("targets", torch.int64),
    ("rewards", torch.float32),
)


def share_rollouts(rollouts: Sequence[Rollout], world: World) -> Sequence[Rollout]:
    """Rank 0's rollouts, on every rank."""
    if world.size == 1:
        return rollouts
    plain = [
        {
            "id": rollout.id,
            "policy_version": rollout.policy_version,
            "checksum": rollout.checksum,
            "seconds": rollout.seconds,
            "branch": rollout.branch,
            "result": {name: rollout.result[name].tolist() for name, _ in _TENSORS},
        }
        for rollout in rollouts
    ]
    received: list[dict[str, Any]] = world.broadcast_object(plain)
    return [
        Rollout(
            **{
                **fields,
                "result": {
                    name: torch.tensor(fields["result"][name], dtype=dtype)
                    for name, dtype in _TENSORS
                },
            }
        )
        for fields in received
    ]
