"""What a thought is worth, asked by taking it away: right answers with it and with other things.

Answers count as a reader would read them: an item is right when the likeliest token is the target
at every place of it, which is what greedy decoding would write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from distforge.activity import counted
from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.theater import substitutes
from distforge.thinking.items import ThoughtItem, grouped, in_batches, pad_targets, pad_texts
from distforge.thinking.places import Places, TargetScores
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, Thoughts

Condition = Literal["own", "sampled", "shuffled", "random", "filler", "none", "gold"]
CONTROLS: tuple[Condition, ...] = ("shuffled", "random", "filler", "none")


@dataclass(frozen=True)
class ProbeResult:
    """Of N places: ``hits`` (N,) boolean, whether the target is met; ``bits`` (N,), what the whole
    target costs; ``tokens`` (N,), how many it has."""

    hits: Tensor
    bits: Tensor
    tokens: Tensor


class ThoughtProbe:
    """Asks one model about the same items under several conditions.

    Args:
        model: a `ThinkingModel` or any causal LM of transformers.
        items: one or more.
        thought: how it thinks; greedy but in "sampled".
        batch_size: items at once.
        seed: of sampling, of the order of the shuffled and of the random tokens.

    Raises:
        InputError: no items.
    """

    def __init__(
        self,
        model: nn.Module,
        items: Sequence[ThoughtItem],
        tags: Tags,
        thought: ThoughtConfig,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        if not items:
            raise InputError("there is no item to probe with; give at least one")
        generator = torch.Generator().manual_seed(seed)
        self._batches = [
            _Batch(model, batch, tags, thought, generator)
            for batch in in_batches(items, batch_size)
        ]

    def ask(self, condition: Condition) -> ProbeResult:
        """All places of all items, in order.

        Args:
            condition: "own", its own greedy thought; "sampled", its own at the temperature;
                "shuffled", its own of another item; "random", tokens drawn from all that its
                thoughts hold, as many; "filler", one and the same token, as many; "none", no
                thought and no tags; "gold", the true thought.

        Raises:
            InputError: "gold" where an item has no true thought.
        """
        what = f"asking with thoughts of the kind {condition!r}, in batches"
        parts = [batch.ask(condition) for batch in counted(self._batches, what)]
        return ProbeResult(
            hits=torch.cat([part.hits for part in parts]),
            bits=torch.cat([part.bits for part in parts]),
            tokens=torch.cat([part.tokens for part in parts]),
        )


class _Batch:
    """A batch of items with its greedy thoughts, which most conditions start from."""

    def __init__(
        self,
        model: nn.Module,
        items: Sequence[ThoughtItem],
        tags: Tags,
        thought: ThoughtConfig,
        generator: torch.Generator,
    ) -> None:
        self._items, self._tags = items, tags
        self._thought, self._generator = thought, generator
        device = next(model.parameters()).device
        ids, mask = (part.to(device) for part in pad_texts(items, tags.pad))
        self._rows, self._positions, _ = grouped(items, 1)
        self._targets = pad_targets([t for item in items for t in item.targets]).to(device)
        self._places = Places(model, ids, mask, self._rows, self._positions, self._targets, tags)
        self._own: tuple[Thoughts, TargetScores] | None = None

    def ask(self, condition: Condition) -> ProbeResult:
        scores = self._scores(condition)
        there = self._targets != IGNORE_INDEX
        nats = -torch.where(there, scores.log_probs, 0.0).sum(dim=1)
        return ProbeResult(
            hits=(scores.hits | ~there).all(dim=1).cpu(),
            bits=(nats / math.log(2)).cpu(),
            tokens=there.sum(dim=1).cpu(),
        )

    def _scores(self, condition: Condition) -> TargetScores:
        if condition == "none":
            return self._places.score_without_thoughts()
        if condition in ("own", "sampled"):
            return self._think(greedy=condition == "own")[1]
        return self._places.score(self._replaced(condition))

    def _think(self, *, greedy: bool) -> tuple[Thoughts, TargetScores]:
        if greedy and self._own is not None:
            return self._own
        result = self._places.think(replace(self._thought, greedy=greedy), self._generator)
        if greedy:
            self._own = result
        return result

    def _replaced(self, condition: Condition) -> Thoughts:
        """The greedy thoughts with other tokens in them."""
        if condition == "gold":
            return self._gold()
        own = self._think(greedy=True)[0]
        if condition == "shuffled":
            return substitutes.shuffled(own, self._generator)
        if condition == "filler":
            return substitutes.filler(own)
        return substitutes.random(own, self._generator)

    def _gold(self) -> Thoughts:
        missing = [item.id for item in self._items if item.gold is None]
        if missing:
            raise InputError(f"item {missing[0]!r} has no true thought to probe with")
        gold = [torch.tensor(item.gold or (), dtype=torch.int64) for item in self._items]
        padded = torch.nn.utils.rnn.pad_sequence(
            gold, batch_first=True, padding_value=self._tags.pad
        )
        lengths = torch.tensor([len(row) for row in gold])
        return Thoughts(
            rows=self._rows,
            positions=self._positions,
            tokens=padded[self._rows],
            lengths=lengths[self._rows],
            closed=torch.zeros(len(self._rows), dtype=torch.bool),
            log_probs=torch.zeros(len(self._rows), padded.shape[1]),
        )
