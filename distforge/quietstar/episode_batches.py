"""Where the learner's steps come from: thoughts are written, rewarded, compared and packed.

A `BatchSource` like any other to the training loop. Before each step the newest weights are
published, then the step's rollouts are taken; rank 0 does both, and all ranks get the rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.quietstar.adapter import MergedSource
from distforge.quietstar.advantages import Advantages, unlike
from distforge.quietstar.completions import Completion
from distforge.quietstar.config import EpisodeConfig
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.episodes import (
    Episode,
    by_episode,
    pack_episodes,
    told_apart,
)
from distforge.quietstar.judging import Judged, judge_rollouts
from distforge.quietstar.rollout_sharing import share_rollouts
from distforge.quietstar.scorer import Scorer
from distforge.quietstar.writing import Writing
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
    that wrote the rollouts. seconds: that engines took for them, summed. components: the mean of
    each reward function, by name; NaN where it said nothing. finished: share of the thoughts that
    the model ended itself. completions: some of the step's, on rank 0, where reward functions
    judge. waited: seconds until the rollouts were there and judged.
    """

    rewards: Tensor
    lengths: Tensor
    trained_tokens: int
    versions: tuple[int, ...]
    seconds: float
    components: Mapping[str, float] = field(default_factory=dict)
    finished: float = 1.0
    completions: Sequence[Completion] = ()
    waited: float = 0.0


class EpisodeBatches:
    """The `BatchSource` of reinforcement learning.

    Args:
        pool: on rank 0; None on the others.
        hidden_size: of the model, see `thrifty_width`.
        scorer: the moving average that is published beside the policy, where the reward wants it.
        writing: judges what engines wrote, where reward functions do.
        signal_steps: see `RewardConfig`.
    """

    def __init__(
        self,
        plan: EpisodePlan,
        pool: RolloutPool | None,
        engine: TrainingEngine | MergedSource,
        advantages: Advantages,
        config: EpisodeConfig,
        tags: Tags,
        world: World,
        steps_per_epoch: int,
        hidden_size: int,
        scorer: Scorer | None = None,
        writing: Writing | None = None,
        signal_steps: int = 10,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.last: StepExperience | None = None
        self._plan, self._pool, self._engine = plan, pool, engine
        self._advantages, self._config, self._tags = advantages, config, tags
        self._world, self._scorer, self._writing = world, scorer, writing
        self._hidden_size = hidden_size
        self._signal_steps, self._has_signal = signal_steps, False

    def steps(self, first: int) -> Iterator[StepBatch]:
        """See `BatchSource`."""
        for step in count(first):
            began = time.perf_counter()
            self._publish(step)
            rollouts = self._pool.take(step) if self._pool is not None else []
            shared, judged = self._judged(share_rollouts(rollouts, self._world), step)
            self._require_signal(shared, step, first)
            yield self._batch(shared, judged, time.perf_counter() - began)

    def _publish(self, version: int) -> None:
        weights = dict(gather_weights(self._engine))
        if self._scorer is not None:
            weights |= self._scorer.advance(weights, version)
        if self._pool is not None:
            self._pool.publish(version, weights)

    def _judged(self, rollouts: Sequence[Rollout], step: int) -> tuple[Sequence[Rollout], Judged]:
        """The rollouts with what reward functions say of them."""
        if self._writing is None:
            return rollouts, Judged()
        thoughts = self._config.thoughts
        return judge_rollouts(rollouts, self._writing, self._plan, thoughts, step, self._world)

    def _require_signal(self, rollouts: Sequence[Rollout], step: int, first: int) -> None:
        """Refuse to go on where nothing was told apart since the start of the run."""
        rewards = torch.cat([rollout.result["rewards"] for rollout in rollouts])
        groups = rewards.view(-1, self._config.thoughts)
        self._has_signal |= bool(unlike(groups).any()) or self._config.thoughts == 1
        if self._has_signal or first > 0 or step + 1 < self._signal_steps:
            return
        raise InputError(
            f"in {step + 1} steps no group of {self._config.thoughts} holds two different rewards "
            f"(all of the last step are {float(rewards.min()):g} to {float(rewards.max()):g}), so "
            "there is nothing to learn from; give easier questions where all are wrong and harder "
            "ones where all are right, raise episodes.thoughts or thought.max_tokens, or add a "
            "reward that differs between answers"
        )

    def _batch(self, rollouts: Sequence[Rollout], judged: Judged, waited: float) -> StepBatch:
        """This rank's micro-batches: the episodes of the step, dealt out in turn."""
        rewards = torch.cat([rollout.result["rewards"] for rollout in rollouts])
        advantages = self._advantages(rewards.view(-1, self._config.thoughts)).reshape(-1)
        portions = self._config.portions
        least = 1 if self._engine.takes_fewer else portions
        episodes = told_apart(by_episode(rollouts, self._plan, advantages), self._config, least)
        closed = torch.cat([rollout.result["closed"] for rollout in rollouts])
        lengths = torch.cat([rollout.result["lengths"] for rollout in rollouts])
        self.last = StepExperience(
            rewards=rewards,
            lengths=lengths,
            trained_tokens=sum(_trained_tokens(episode) for episode in episodes),
            versions=tuple(rollout.policy_version for rollout in rollouts),
            seconds=sum(rollout.seconds for rollout in rollouts),
            components=judged.means,
            finished=float(closed.float().mean()),
            completions=judged.completions(rewards, advantages, closed),
            waited=waited,
        )
        dealt = [episodes[i::portions] for i in range(min(portions, len(episodes)))]
        mine = dealt[self._world.rank :: self._world.size]
        return StepBatch(
            micro_batches=[
                pack_episodes(portion, self._tags, self._hidden_size) for portion in mine
            ],
            targets=sum(len(episode.thoughts) for episode in episodes),
            tokens=int(lengths.sum()),
            ids=[[episode.item.id for episode in portion] for portion in dealt],
        )


def _trained_tokens(episode: Episode) -> int:
    """The text once; each thought with its tags and target."""
    thoughts = int(episode.thoughts.lengths.sum()) + 2 * len(episode.thoughts)
    return len(episode.item.text) + thoughts + int((episode.targets != IGNORE_INDEX).sum())
