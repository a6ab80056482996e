"""The engine that rollout actors run: it writes groups of thoughts and rewards them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.config import RewardConfig
from distforge.quietstar.rewards import compute_rewards
from distforge.rollouts import RolloutRequest
from distforge.thinking.items import ThoughtItem, grouped, pad_targets, pad_texts
from distforge.thinking.language_model import turn_for_writing_
from distforge.thinking.model import ThinkingModel
from distforge.thinking.places import Places
from distforge.thinking.positions import PositionsConfig, placed
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, Thoughts, sample_thoughts

SCORER_PREFIX = "scorer."
"""Of the scorer's weights, where they travel beside the policy's."""


@dataclass(frozen=True)
class EngineRecipe:
    """What it takes to make a `ThoughtEngine` in another process; pickles. Call it to make one.

    config: of the thinking model.
    tags, thought, reward: see their classes.
    thoughts: of each group, written at one place.
    device, dtype: where the engine computes, and how precisely.
    """

    config: PretrainedConfig
    tags: Tags
    thought: ThoughtConfig
    reward: RewardConfig
    positions: PositionsConfig
    thoughts: int
    device: str = "cpu"
    dtype: str = "float32"

    def __call__(self) -> ThoughtEngine:
        return ThoughtEngine(self)


class ThoughtEngine:
    """A `RolloutEngine`: a request's payload is a list of `ThoughtItem`."""

    def __init__(self, recipe: EngineRecipe) -> None:
        self._recipe = recipe
        self._model = ThinkingModel(copy.deepcopy(recipe.config)).to(
            recipe.device, getattr(torch, recipe.dtype)
        )
        self._model.eval()
        turn_for_writing_(self._model.lm)
        self._scorer: ThinkingModel | None = None
        if recipe.reward.kind == "prediction_gain":
            self._scorer = ThinkingModel(copy.deepcopy(recipe.config)).to(recipe.device).eval()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the policy's weights, and the scorer's where there are any."""
        policy = {k: v for k, v in weights.items() if not k.startswith(SCORER_PREFIX)}
        self._model.load_state_dict(policy)
        if self._scorer is not None:
            own = {k.removeprefix(SCORER_PREFIX): v for k, v in weights.items() if k not in policy}
            self._scorer.load_state_dict(own)

    @torch.no_grad()
    def rollout(self, request: RolloutRequest) -> dict[str, Tensor]:
        """The thoughts of the request's items, ``thoughts`` at each place, item by item.

        Returns CPU tensors of N thoughts: ``rows``, ``positions``, ``tokens``, ``lengths``,
        ``closed`` and ``log_probs`` as in `Thoughts`; ``targets`` (N, n) and ``rewards`` (N,).
        """
        recipe, device = self._recipe, self._recipe.device
        generator = torch.Generator().manual_seed(request.seed)
        if recipe.reward.function:
            return self._write(request.payload, generator)
        items = placed(request.payload, self._model, recipe.positions, recipe.tags)
        ids, mask = (part.to(device) for part in pad_texts(items, recipe.tags.pad))
        rows, positions, groups = grouped(items, recipe.thoughts)
        by_group = [target for item in items for target in item.targets]
        targets = pad_targets([by_group[group] for group in groups]).to(device)
        places = Places(self._model, ids, mask, rows, positions, targets, recipe.tags)
        thoughts, scores = places.think(recipe.thought, generator)
        without = None
        if self._scorer is not None:
            without = self._score_without(ids, mask, thoughts, targets)
        rewards = compute_rewards(recipe.reward, scores, targets, without)
        return _on_cpu(thoughts, targets, rewards)

    def _write(self, items: Sequence[ThoughtItem], generator: torch.Generator) -> dict[str, Tensor]:
        """Whole answers; the learner judges them."""
        recipe, device = self._recipe, self._recipe.device
        ids, mask = (part.to(device) for part in pad_texts(items, recipe.tags.pad))
        rows, positions, _ = grouped(items, recipe.thoughts)
        thoughts = sample_thoughts(
            self._model, ids, mask, rows, positions, recipe.tags, recipe.thought, generator
        )
        nothing = torch.zeros(len(thoughts), 0, dtype=torch.int64)
        return _on_cpu(thoughts, nothing, torch.zeros(len(thoughts)))

    def _score_without(
        self, ids: Tensor, mask: Tensor, thoughts: Thoughts, targets: Tensor
    ) -> Tensor:
        """Once a place, not once a thought: the scorer sees no thought."""
        assert self._scorer is not None
        every = self._recipe.thoughts
        once = Places(
            self._scorer,
            ids,
            mask,
            thoughts.rows[::every],
            thoughts.positions[::every],
            targets[::every],
            self._recipe.tags,
        )
        return once.score_without_thoughts().log_probs.repeat_interleave(every, dim=0)


def _on_cpu(thoughts: Thoughts, targets: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    # Padding that no thought of this request needs is not sent.
    longest = max(int(thoughts.lengths.max()), 1)
    columns = int((targets != IGNORE_INDEX).sum(dim=1).max())
    return {
        "rows": thoughts.rows.cpu(),
        "positions": thoughts.positions.cpu(),
        "tokens": thoughts.tokens[:, :longest].cpu(),
        "lengths": thoughts.lengths.cpu(),
        "closed": thoughts.closed.cpu(),
        "log_probs": thoughts.log_probs[:, :longest].cpu(),
        "targets": targets[:, :columns].cpu(),
        "rewards": rewards.float().cpu(),
    }
