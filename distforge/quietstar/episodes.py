"""One item with its thoughts: which are worth learning from, and packed for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.config import EpisodeConfig
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.thought_loss import ADVANTAGES, BEHAVIOUR
from distforge.rollouts import Rollout
from distforge.thinking.items import ThoughtItem
from distforge.thinking.packing import THOUGHT, pack_thoughts
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts


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


def by_episode(rollouts: Sequence[Rollout], plan: EpisodePlan, advantages: Tensor) -> list[Episode]:
    """The rollouts' items one by one, each with the advantages of its thoughts (N,), in order."""
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
