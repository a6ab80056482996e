"""Where the learner's steps come from: thoughts are written, rewarded, compared and packed.

A `BatchSource` like any other to the training loop. Before each step the newest weights are
published, then the step's rollouts are taken; rank 0 does both, and all ranks get the rollouts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import EpisodeConfig
from distforge.quietstar.items import ThoughtItem
from distforge.quietstar.moving_average import MovingAverage
from distforge.quietstar.packing import THOUGHT, pack_thoughts
from distforge.quietstar.tags import Tags
from distforge.quietstar.thought_loss import ADVANTAGES, BEHAVIOUR
from distforge.quietstar.thoughts import Thoughts
from distforge.rollouts import Rollout, RolloutPool, RolloutRequest, gather_weights
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.supervised import StepBatch

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


class EpisodePlan:
    """Which items each request holds: a `RequestPlan`, a pure function of seed and step.

    Every item comes once before any comes twice, in an order drawn anew each time around.

    Raises:
        InputError: no items.
    """

    def __init__(self, items: Sequence[ThoughtItem], config: EpisodeConfig) -> None:
        if not items:
            raise InputError("there is no item to think about; give at least one")
        self._items = items
        self._config = config
        # The order of the latest time around: consecutive requests ask for the same one.
        self._around, self._shuffled = -1, list[int]()

    def __call__(self, step: int) -> list[RolloutRequest]:
        first = step * self._config.requests_per_step
        return [
            RolloutRequest(number, self._seed(number), self.payload(number))
            for number in range(first, first + self._config.requests_per_step)
        ]

    def payload(self, number: int) -> list[ThoughtItem]:
        """The items of request ``number``."""
        each = self._config.episodes_per_request
        return [self._item(number * each + offset) for offset in range(each)]

    def _item(self, episode: int) -> ThoughtItem:
        around, index = divmod(episode, len(self._items))
        return self._items[self._order(around)[index]]

    def _order(self, around: int) -> list[int]:
        if self._around != around:
            order = list(range(len(self._items)))
            random.Random(f"{self._config.seed}:{around}").shuffle(order)
            self._around, self._shuffled = around, order
        return self._shuffled

    def _seed(self, number: int) -> int:
        return random.Random(f"{self._config.seed}:request:{number}").getrandbits(63)


@dataclass(frozen=True)
class StepExperience:
    """What a step was made of.

    rewards, lengths: (N,), of all thoughts of the step. versions: of the policies that wrote the
    rollouts. seconds: that engines took for them, summed.
    """

    rewards: Tensor
    lengths: Tensor
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
        scorer: MovingAverage | None = None,
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
            yield self._batch(_share(rollouts, self._world))

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
        episodes = told_apart(_by_episode(rollouts, self._plan, advantages), self._config)
        lengths = torch.cat([rollout.result["lengths"] for rollout in rollouts])
        self.last = StepExperience(
            rewards=rewards,
            lengths=lengths,
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


@dataclass(frozen=True)
class Episode:
    """One item, its thoughts (whatever their ``rows``); the target, reward, advantage of each."""

    item: ThoughtItem
    thoughts: Thoughts
    targets: Tensor
    rewards: Tensor
    advantages: Tensor


def told_apart(episodes: Sequence[Episode], config: EpisodeConfig) -> list[Episode]:
    """Those with a group whose rewards differ by ``config.min_spread``, in order.

    Where they are fewer than the micro-batches, which may not be empty, the others that differ most
    come along.
    """
    spreads = [_spread(episode.rewards, config.thoughts) for episode in episodes]
    widest = sorted(range(len(episodes)), key=lambda i: -spreads[i])
    enough = sum(spread >= config.min_spread for spread in spreads)
    kept = sorted(widest[: max(enough, config.micro_batches)])
    return [episodes[i] for i in kept]


def _spread(rewards: Tensor, thoughts: int) -> float:
    """The largest difference inside a group; 0 where nothing was thought."""
    if not len(rewards):
        return 0.0
    groups = rewards.view(-1, thoughts)
    return float((groups.amax(dim=1) - groups.amin(dim=1)).max())


def pack_episodes(episodes: Sequence[Episode], tags: Tags) -> Mapping[str, Tensor]:
    """One micro-batch for `ThoughtLoss`."""
    joined = _concatenate(
        [
            replace(episode.thoughts, rows=torch.full_like(episode.thoughts.rows, row))
            for row, episode in enumerate(episodes)
        ],
        tags.pad,
    )
    targets = _stack([episode.targets for episode in episodes], IGNORE_INDEX)
    packed = pack_thoughts([episode.item.text for episode in episodes], joined, targets, tags)
    slots = packed["kind"] == THOUGHT
    owner, step = packed["thought"][slots], packed["step"][slots]
    advantages = torch.cat([episode.advantages for episode in episodes])
    return {
        **packed,
        BEHAVIOUR: joined.log_probs[owner, step],
        ADVANTAGES: advantages[owner],
    }


def _by_episode(
    rollouts: Sequence[Rollout], plan: EpisodePlan, advantages: Tensor
) -> list[Episode]:
    episodes, start = [], 0
    for rollout in rollouts:
        result = rollout.result
        own = advantages[start : start + len(result["rewards"])]
        start += len(own)
        thoughts = Thoughts(**{field.name: result[field.name] for field in fields(Thoughts)})
        for row, item in enumerate(plan.payload(rollout.id)):
            chosen = thoughts.rows == row
            episodes.append(
                Episode(
                    item,
                    thoughts.at(chosen),
                    result["targets"][chosen],
                    result["rewards"][chosen],
                    own[chosen],
                )
            )
    return episodes


def _concatenate(parts: Sequence[Thoughts], pad: int) -> Thoughts:
    return Thoughts(
        rows=torch.cat([part.rows for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        tokens=_stack([part.tokens for part in parts], pad),
        lengths=torch.cat([part.lengths for part in parts]),
        closed=torch.cat([part.closed for part in parts]),
        log_probs=_stack([part.log_probs for part in parts], 0.0),
    )


def _stack(parts: Sequence[Tensor], fill: float) -> Tensor:
    """(n_i, w_i) matrices one under another, filled up on the right."""
    width = max(part.shape[1] for part in parts)
    padded = [
        torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts
    ]
    return torch.cat(padded)


def _share(rollouts: Sequence[Rollout], world: World) -> Sequence[Rollout]:
    """Rank 0's rollouts, on every rank."""
    if world.size == 1:
        return rollouts
    plain = [
        {
            "id": rollout.id,
            "policy_version": rollout.policy_version,
            "checksum": rollout.checksum,
            "seconds": rollout.seconds,
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
