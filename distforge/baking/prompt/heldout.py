"""Held-out KL: how far a model without the prompt is from its prompted teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distforge.activity import counted
from distforge.baking.prompt.distillation import DistillationLoss
from distforge.baking.prompt.teacher_cache import join_targets
from distforge.baking.prompt.trajectories import Trajectory, collate_trajectories
from distforge.data.dataset import IGNORE_INDEX
from distforge.training.distributed import World

# Rows whose KL is measured at once.
_MEASURED_ROWS = 32


@torch.no_grad()
def mean_kl(
    model: nn.Module,
    loss: DistillationLoss,
    trajectories: Sequence[Trajectory],
    world: World,
    pad_token_id: int,
    states: Sequence[Mapping[str, Tensor]] | None = None,
) -> float:
    """KL(teacher with the prompt ‖ model without) in nats, mean over response tokens; collective.

    Always the forward KL over the whole vocabulary, whatever ``loss`` trains on.

    Args:
        states: of the teacher on each trajectory, see `write_down_teacher`; by default it reads
            them.
    """
    exact = replace(loss, beta=0.0, top_k=0)
    was_training = model.training
    model.eval()
    total = count = 0.0
    order = sorted(range(len(trajectories)), key=lambda index: trajectories[index].length)
    mine = order[world.rank :: world.size]
    try:
        for start in counted(range(0, len(mine), _MEASURED_ROWS), "measuring the held-out KL"):
            part = mine[start : start + _MEASURED_ROWS]
            batch = collate_trajectories([trajectories[index] for index in part], pad_token_id)
            if states is not None:
                batch |= join_targets([states[index] for index in part])
            on_device = {key: value.to(world.device) for key, value in batch.items()}
            value, _ = exact(model, on_device)
            total += float(value)
            count += float((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    finally:
        model.train(was_training)
    total, count = world.all_reduce_sum([total, count])
    return total / count
