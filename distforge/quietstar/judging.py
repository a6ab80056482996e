"""Rollouts of whole answers, judged by reward functions on rank 0 for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from distforge.quietstar.asked import AskedItem, said_last
from distforge.quietstar.completions import Completion
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.episodes import thoughts_of
from distforge.quietstar.writing import Writing, without_silence
from distforge.rollouts import Rollout
from distforge.training.distributed import World, on_main

# Questions of a step whose completions are kept.
_KEPT_GROUPS = 2


@dataclass(frozen=True)
class Judged:
    """Of the N answers of a step.

    parts: by function, what it said of each; NaN where nothing. written: question and text of the
    first of them, on rank 0 alone.
    """

    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    written: Sequence[tuple[str, str]] = ()

    @property
    def means(self) -> dict[str, float]:
        """Of each function, over the answers that it said something of."""
        return {name: float(torch.tensor(said).nanmean()) for name, said in self.parts.items()}

    def completions(
        self, rewards: Tensor, advantages: Tensor, closed: Tensor
    ) -> tuple[Completion, ...]:
        """The written ones, with what (N,) rewards and advantages they got."""
        return tuple(
            Completion(
                prompt=prompt,
                completion=text,
                rewards={k: None if math.isnan(v[n]) else v[n] for k, v in self.parts.items()},
                reward=float(rewards[n]),
                advantage=float(advantages[n]),
                finished=bool(closed[n]),
            )
            for n, (prompt, text) in enumerate(self.written)
        )


def judge_rollouts(
    rollouts: Sequence[Rollout],
    writing: Writing,
    plan: EpisodePlan,
    thoughts: int,
    step: int,
    world: World,
) -> tuple[list[Rollout], Judged]:
    """The rollouts with their rewards, and what was said; collective.

    Args:
        thoughts: answers to each question.

    Raises:
        InputError: on every rank, where a reward function broke its promise.
    """
    written: list[tuple[str, str]] = []

    def judge() -> list[Any]:
        found = []
        for rollout in rollouts:
            items = cast("list[AskedItem]", plan.payload(rollout.id))
            asked = thoughts_of(rollout.result)
            answers = writing.judge(items, asked, step)
            parts = {name: said.tolist() for name, said in answers.components.items()}
            found.append([answers.rewards.tolist(), parts])
            rows = zip(asked.rows.tolist(), answers.texts, strict=True)
            written.extend((said_last(items[row].prompt), text) for row, text in rows)
        return found

    answered = on_main(world, judge)
    judged = [
        replace(
            rollout,
            result={
                **rollout.result,
                "rewards": without_silence(torch.tensor(rewards), thoughts),
            },
        )
        for rollout, (rewards, _) in zip(rollouts, answered, strict=True)
    ]
    parts = {name: [v for _, said in answered for v in said[name]] for name in answered[0][1]}
    return judged, Judged(parts, written[: _KEPT_GROUPS * thoughts])
