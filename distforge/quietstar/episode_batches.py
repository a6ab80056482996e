"""Where the learner's steps come from: thoughts are written, rewarded, compared and packed.

A `BatchSource` like any other to the training loop. Before each step the newest weights are
published, then the step's rollouts are taken; rank 0 does both, and all ranks get the rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import EpisodeConfig
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.episodes import Episode, by_episode, pack_episodes, told_apart
from distforge.quietstar.rollout_sharing import share_rollouts
from distforge.quietstar.scorer import Scorer
from distforge.rollouts import Rollout, RolloutPool, gather_weights
from distforge.thinking.tags import Tags
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.supervised import StepBatch


@dataclass(frozen=True)
class StepExperience:
    """What a step was made of.

    rewards, lengths: (N,), of all thoughts of the step. trained_tokens: that the learner reads, on
    all ranks: texts with their thoughts and targets, padding not counted. versions: of the policies
    that wrote the rollouts. seconds: that engines took for them, summed.
    """

    rewards: Tensor
    lengths: Tensor
    trained_tokens: int
    versions: tuple[int, ...]
    seconds: float


class EpisodeBatches:
    """The `BatchSource` of reinforcement learning.

    Args:
        pool: on rank 0; None on the others.
        scorer: the moving average that is published beside the policy, where the reward wants it.
    """

    def __init__(
        self,
        plan: EpisodePlan,
        pool: RolloutPool | None,
        engine: TrainingEngine,
        advantages: Advantages,
        config: EpisodeConfig,
        tags: Tags,
        world: World,
        steps_per_epoch: int,
        scorer: Scorer | None = None,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.last: StepExperience | None = None
        self._plan, self._pool, self._engine = plan, pool, engine
        self._advantages, self._config, self._tags = advantages, config, tags
        self._world, self._scorer = world, scorer

    def steps(self, first: int) -> Iterator[StepBatch]:
        """See `BatchSource`."""
        for step in count(first):
            self._publish(step)
            rollouts = self._pool.take(step) if self._pool is not None else []
            yield self._batch(share_rollouts(rollouts, self._world))

    def _publish(self, version: int) -> None:
        weights = dict(gather_weights(self._engine))
        if self._scorer is not None:
            weights |= self._scorer.advance(weights, version)
        if self._pool is not None:
            self._pool.publish(version, weights)

    def _batch(self, rollouts: Sequence[Rollout]) -> StepBatch:
        """This rank's micro-batches: the episodes of the step, dealt out in turn."""
        rewards = torch.cat([rollout.result["rewards"] for rollout in rollouts])
        advantages = self._advantages(rewards.view(-1, self._config.thoughts)).reshape(-1)
        episodes = told_apart(by_episode(rollouts, self._plan, advantages), self._config)
        lengths = torch.cat([rollout.result["lengths"] for rollout in rollouts])
        self.last = StepExperience(
            rewards=rewards,
            lengths=lengths,
            trained_tokens=sum(_trained_tokens(episode) for episode in episodes),
            versions=tuple(rollout.policy_version for rollout in rollouts),
            seconds=sum(rollout.seconds for rollout in rollouts),
        )
        portions = [
            episodes[i :: self._config.micro_batches] for i in range(self._config.micro_batches)
        ]
        mine = portions[self._world.rank :: self._world.size]
        return StepBatch(
            micro_batches=[pack_episodes(portion, self._tags) for portion in mine],
            targets=sum(len(episode.thoughts) for episode in episodes),
            tokens=int(lengths.sum()),
            ids=[[episode.item.id for episode in portion] for portion in portions],
        )


def _trained_tokens(episode: Episode) -> int:
    """The text once; each thought with its tags and target."""
    thoughts = int(episode.thoughts.lengths.sum()) + 2 * len(episode.thoughts)
    return len(episode.item.text) + thoughts + int((episode.targets != IGNORE_INDEX).sum())
