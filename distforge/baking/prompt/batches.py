"""The steps of prompt baking, for the one training loop: trajectories written before, or just now.

With probability ``on_policy`` (λ of GKD, arXiv 2306.13649, algorithm 1) a step's responses are
written anew by the student as it is; else they are the prompted teacher's. Which steps, and what is
sampled, depends on the seed, the step and the weights alone, so a resumed run continues as it was.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from distforge.baking.prompt.distillation import TEACHER_PREFIX
from distforge.baking.prompt.teacher_cache import join_targets
from distforge.baking.prompt.trajectories import Trajectory, collate_trajectories
from distforge.data import BatchPlan
from distforge.training.distributed import World
from distforge.training.supervised import StepBatch, SupervisedConfig

# (indices of questions, seed) -> one trajectory each, by the student as it is now; collective.
Rewrite = Callable[[Sequence[int], int], list[Trajectory]]


class PromptBatches:
    """The `BatchSource` of prompt baking.

    Args:
        trajectories: the prompted teacher's, one a question.
        config: batch size, micro-batches and seed; micro-batches are cut by padded length.
        world: this process; every rank reads its share of every step.
        pad_token_id: what rows are padded with.
        on_policy: share of steps on the student's own responses, in [0, 1].
        rewrite: writes them.
        targets: what was written down of the teacher on ``trajectories``, see `write_down_teacher`;
            None lets the teacher read each batch.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        config: SupervisedConfig,
        world: World,
        pad_token_id: int,
        on_policy: float,
        rewrite: Rewrite,
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._trajectories = trajectories
        self._targets = targets
        self._world = world
        self._pad_token_id = pad_token_id
        self._on_policy = on_policy
        self._rewrite = rewrite
        self._seed = config.seed
        self._plan = BatchPlan(
            [trajectory.length for trajectory in trajectories],
            config.batch_size,
            config.micro_batches,
            config.seed,
        )
        self.steps_per_epoch = self._plan.steps_per_epoch

    def steps(self, first: int) -> Iterator[StepBatch]:
        """See `BatchSource`."""
        for step, parts in enumerate(self._plan.steps(first), start=first):
            on_policy = self.is_on_policy(step)
            indices = [index for part in parts for index in part]
            rows = self._rewritten(step, indices) if on_policy else self._written(indices)
            mine = parts[self._world.rank :: self._world.size]
            teacher_reads = self._targets is None or on_policy
            yield StepBatch(
                [self._collate(rows, part, on_policy) for part in mine],
                targets=sum(len(row.response) for row in rows.values()),
                tokens=sum(
                    row.tokens if teacher_reads else len(row.plain) + len(row.response)
                    for row in rows.values()
                ),
            )

    def is_on_policy(self, step: int) -> bool:
        """Whether step ``step`` (from 0) trains on the student's own responses."""
        return random.Random(f"{self._seed}:{step}:on-policy").random() < self._on_policy

    def _written(self, indices: Sequence[int]) -> dict[int, Trajectory]:
        return {index: self._trajectories[index] for index in indices}

    def _rewritten(self, step: int, indices: Sequence[int]) -> dict[int, Trajectory]:
        digest = hashlib.sha256(f"{self._seed}:{step}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        return dict(zip(indices, self._rewrite(indices, seed), strict=True))

    def _collate(
        self, rows: Mapping[int, Trajectory], part: Sequence[int], on_policy: bool
    ) -> dict[str, Tensor]:
        batch = collate_trajectories([rows[index] for index in part], self._pad_token_id)
        if self._targets is None or on_policy:
            return batch
        student = {k: v for k, v in batch.items() if not k.startswith(TEACHER_PREFIX)}
        return student | join_targets([self._targets[index] for index in part])
