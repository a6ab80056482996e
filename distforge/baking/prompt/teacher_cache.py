"""The teacher's distributions on responses that do not change, made once instead of every epoch.

Exact, by the teacher's last states (a few hundred numbers a token, from which the frozen head makes
the whole distribution again), or reduced to the likeliest tokens and a tail bucket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distforge.activity import counted
from distforge.baking.prompt.distillation import (
    CACHED_STATES,
    TOP_IDS,
    TOP_LOG_PROBS,
    DistillationLoss,
    response_ids,
)
from distforge.baking.prompt.divergence import StateTeacher, rows_per_chunk
from distforge.baking.prompt.trajectories import Trajectory, collate_trajectories

# Trajectories that the teacher reads at once.
_ROWS = 32


@torch.no_grad()
def write_down_teacher(
    module: nn.Module,
    loss: DistillationLoss,
    trajectories: Sequence[Trajectory],
    device: torch.device,
    pad_token_id: int,
) -> list[dict[str, Tensor]] | None:
    """What a micro-batch holds instead of the teacher's inputs, by trajectory, on the CPU.

    ``cached_states`` (response length, d), or ``top_ids`` and ``top_log_probs`` where ``loss`` has
    a ``top_k``. None where the whole distribution would have to be kept.
    """
    if not loss.states and not loss.top_k:
        return None
    found: list[dict[str, Tensor]] = []
    starts = range(0, len(trajectories), _ROWS)
    for start in counted(starts, "reading the prompted model's answers"):
        part = trajectories[start : start + _ROWS]
        batch = collate_trajectories(part, pad_token_id)
        batch = {key: value.to(device) for key, value in batch.items()}
        teacher = loss.run_teacher(module, batch, response_ids(batch["labels"]))
        whole = _reduced(teacher, loss) if loss.top_k else {CACHED_STATES: teacher.states}
        lengths = [len(trajectory.response) for trajectory in part]
        split = {key: value.cpu().split(lengths) for key, value in whole.items()}
        found += [{key: rows[i].clone() for key, rows in split.items()} for i in range(len(part))]
    return found


def join_targets(targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several trajectories, one after another."""
    return {key: torch.cat([rows[key] for rows in targets]) for key in targets[0]}


def _reduced(teacher: StateTeacher, loss: DistillationLoss) -> dict[str, Tensor]:
    step = rows_per_chunk(teacher.states, teacher.head, loss.chunk_elements)
    parts = [
        teacher.rows(slice(start, start + step)) for start in range(0, len(teacher.states), step)
    ]
    ids = [part for part, _ in parts if part is not None]
    return {TOP_IDS: torch.cat(ids), TOP_LOG_PROBS: torch.cat([values for _, values in parts])}
