"""One item with its thoughts: which are worth learning from, and packed for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.config import EpisodeConfig
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.thought_loss import (
    ADVANTAGES,
    BEHAVIOUR,
    COPIES,
    GROUP,
    OWNER,
    SLOT,
)
from distforge.rollouts import Rollout
from distforge.thinking.items import ThoughtItem
from distforge.thinking.packing import THOUGHT, pack_thoughts, thrifty_width
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts, join_thoughts, stack_padded


@dataclass(frozen=True)
class Episode:
    """One item, its thoughts (whatever their ``rows``); the target, reward, advantage of each."""

    item: ThoughtItem
    thoughts: Thoughts
    targets: Tensor
    rewards: Tensor
    advantages: Tensor


def told_apart(episodes: Sequence[Episode], config: EpisodeConfig, least: int) -> list[Episode]:
    """Those with a group whose rewards differ by ``config.min_spread``, in order.

    Where they are fewer than ``least``, the micro-batches that may not be empty, the others that
    differ most come along.
    """
    spreads = [_spread(episode.rewards, config.thoughts) for episode in episodes]
    widest = sorted(range(len(episodes)), key=lambda i: -spreads[i])
    enough = sum(spread >= config.min_spread for spread in spreads)
    kept = sorted(widest[: max(enough, least)])
    return [episodes[i] for i in kept]


def _spread(rewards: Tensor, thoughts: int) -> float:
    """The largest difference inside a group; 0 where nothing was thought."""
    if not len(rewards):
        return 0.0
    groups = rewards.view(-1, thoughts)
    return float((groups.amax(dim=1) - groups.amin(dim=1)).max())


def pack_episodes(
    episodes: Sequence[Episode], tags: Tags, hidden_size: int
) -> Mapping[str, Tensor]:
    """One micro-batch for `ThoughtLoss` of a model of so many channels; thoughts that are alike are
    packed once."""
    joined = join_thoughts(
        [
            replace(episode.thoughts, rows=torch.full_like(episode.thoughts.rows, row))
            for row, episode in enumerate(episodes)
        ],
        tags.pad,
    )
    targets = stack_padded([episode.targets for episode in episodes], IGNORE_INDEX)
    one, same = _distinct(joined, targets)
    texts = [episode.item.text for episode in episodes]
    kinds = (texts, joined.at(one), targets[one])
    packed = pack_thoughts(*kinds, tags, width=thrifty_width(*kinds, hidden_size))
    inside = torch.arange(joined.tokens.shape[1]) < joined.lengths[:, None]
    owner, step = inside.nonzero(as_tuple=True)
    advantages = torch.cat([episode.advantages for episode in episodes])
    places = torch.stack([joined.rows, joined.positions], dim=1)
    return {
        **packed,
        BEHAVIOUR: joined.log_probs[owner, step],
        ADVANTAGES: advantages[owner],
        OWNER: owner,
        SLOT: _first_slots(packed, len(one))[same[owner]] + step,
        GROUP: places.unique(dim=0, return_inverse=True)[1],
        COPIES: same.bincount(),
    }


def _distinct(thoughts: Thoughts, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One thought (D,) of each kind, and the kind (N,) of every thought: those of a kind are at the
    same place, of the same tokens and before the same target."""
    inside = torch.arange(thoughts.tokens.shape[1]) < thoughts.lengths[:, None]
    parts = [thoughts.rows, thoughts.positions, thoughts.lengths, thoughts.closed.long()]
    keys = torch.cat([torch.stack(parts, dim=1), thoughts.tokens * inside, targets], dim=1)
    kinds, same = keys.unique(dim=0, return_inverse=True)
    every = torch.arange(len(same))
    return same.new_full((len(kinds),), len(same)).scatter_reduce(0, same, every, "amin"), same


def _first_slots(packed: Mapping[str, Tensor], thoughts: int) -> Tensor:
    """Where the tokens of each packed thought begin among all that are thought tokens."""
    owner = packed["thought"][packed["kind"] == THOUGHT]
    # A branch stands in one piece. An empty thought has no slot, and nothing asks for it.
    return torch.zeros(thoughts, dtype=torch.int64).scatter_reduce(
        0, owner, torch.arange(len(owner)), "amin", include_self=False
    )


def thoughts_of(result: Mapping[str, Tensor]) -> Thoughts:
    """Those of a rollout."""
    return Thoughts(**{field.name: result[field.name] for field in fields(Thoughts)})


def by_episode(rollouts: Sequence[Rollout], plan: EpisodePlan, advantages: Tensor) -> list[Episode]:
    """The rollouts' items one by one, each with the advantages of its thoughts (N,), in order."""
    episodes, start = [], 0
    for rollout in rollouts:
        result = rollout.result
        own = advantages[start : start + len(result["rewards"])]
        start += len(own)
        thoughts = thoughts_of(result)
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
