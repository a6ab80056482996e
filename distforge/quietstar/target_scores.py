"""How well the text after a place is predicted, with a thought and without.

With a thought means as a `ThinkingModel` predicts: where it has a mixing head, by the mixture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distforge.quietstar.branches import Branches
from distforge.quietstar.language_model import Prediction, evaluating, language_model
from distforge.quietstar.mixing import MixingHead
from distforge.quietstar.tags import Tags
from distforge.quietstar.thoughts import Block, ThoughtConfig, Thoughts, grow, no_thoughts
from distforge.training.loss import IGNORE_INDEX


@dataclass(frozen=True)
class TargetScores:
    """Of N targets of at most n tokens: ``log_probs`` (N, n) float32 in nats, 0 on padding;
    ``hits`` (N, n) boolean, whether the token is the likeliest, false on padding."""

    log_probs: Tensor
    hits: Tensor


def think_and_score(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    positions: Tensor,
    targets: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    generator: torch.Generator | None = None,
) -> tuple[Thoughts, TargetScores]:
    """`sample_thoughts` and `score_targets` in one: the cache of the thoughts is gone on with."""
    if not len(rows):
        return no_thoughts(rows, positions, config), _no_scores(targets)
    places = _Places(model, input_ids, attention_mask, rows, positions, targets, tags)
    with evaluating(model):
        branches = places.branches(config.max_tokens + 2)
        thoughts, unread = grow(branches, rows, positions, tags, config, generator, shrink=False)
        return thoughts, places.score_after(branches, unread, thoughts)


def score_targets(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    thoughts: Thoughts,
    targets: Tensor,
    tags: Tags,
) -> TargetScores:
    """How likely each target token is after ``<think> thought </think>``.

    Args:
        model, input_ids, attention_mask: as in `sample_thoughts`; the thoughts may be anyone's.
        targets: (N, n) int64, what follows each thought, padded behind with -100 (which scores 0).

    In nats, without a temperature: one forward pass over the texts and one over all thoughts and
    targets; with a mixing head, one more over the texts and the targets at their places.
    """
    if not len(thoughts):
        return _no_scores(targets)
    rows, positions = thoughts.rows, thoughts.positions
    places = _Places(model, input_ids, attention_mask, rows, positions, targets, tags)
    with evaluating(model) as lm:
        branches = places.branches(thoughts.tokens.shape[1] + 2)
        tokens = thoughts.tokens.to(lm.device)
        opening = torch.full_like(tokens[:, :1], tags.open)
        inside = torch.arange(tokens.shape[1], device=lm.device)
        inside = inside < thoughts.content_lengths.to(lm.device)[:, None]
        steps = torch.arange(tokens.shape[1] + 1, device=lm.device)
        written = Block(
            torch.cat([opening, tokens], dim=1),
            branches.anchors[:, None] + 1 + steps,
            torch.cat([torch.ones_like(inside[:, :1]), inside], dim=1),
        )
        return places.score_after(branches, written, thoughts)


def score_without_thoughts(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    positions: Tensor,
    targets: Tensor,
    tags: Tags,
) -> TargetScores:
    """As `score_targets`, of targets that follow the text directly, without tags."""
    if not len(rows):
        return _no_scores(targets)
    places = _Places(model, input_ids, attention_mask, rows, positions, targets, tags)
    with evaluating(model):
        return _filled(places.read_plainly().logits, places.targets)


class _Places:
    """N places of a batch of texts, and what should follow there; see `score_targets`."""

    def __init__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        tags: Tags,
    ) -> None:
        self._lm, self._tags = language_model(model), tags
        self._head: MixingHead | None = getattr(model, "mixing_head", None)
        self._texts = (input_ids, attention_mask)
        self._rows, self._positions = rows.to(self._lm.device), positions.to(self._lm.device)
        self.targets = targets.to(self._lm.device)

    def branches(self, room: int, *, base: bool = False) -> Branches:
        """One branch a place, with room for so many tokens and the targets."""
        capacity = room + self.targets.shape[1]
        return Branches(self._lm, *self._texts, self._rows, self._positions, capacity, base=base)

    def score_after(self, branches: Branches, unread: Block, thoughts: Thoughts) -> TargetScores:
        """Feed what is unread of the thoughts, ``</think>`` and the targets."""
        wanted = self.targets != IGNORE_INDEX
        if not wanted.any():
            return _no_scores(self.targets)
        given = self.targets[:, :-1].where(wanted[:, :-1], self._tags.pad)
        closing = torch.full_like(self.targets[:, :1], self._tags.close)
        first = branches.anchors + 2 + thoughts.content_lengths.to(wanted.device)
        places = first[:, None] + torch.arange(wanted.shape[1], device=wanted.device)
        read = branches.feed(
            torch.cat([unread.tokens, closing, given], dim=1),
            torch.cat([unread.places, places], dim=1),
            torch.cat([unread.valid, wanted], dim=1),
            torch.cat([torch.zeros_like(unread.valid), wanted], dim=1),
        )
        if self._head is None:
            return _filled(read.logits, self.targets)
        return _filled(self._head.mix(self._read_plainly_once(), read), self.targets)

    def read_plainly(self) -> Prediction:
        """What is predicted at the M targets, row by row, where they follow the text directly."""
        branches = self.branches(0, base=True)
        assert branches.base is not None
        wanted = self.targets != IGNORE_INDEX
        later = wanted[:, 1:]
        if not later.any():
            return branches.base.of(wanted[:, 0])
        given = self.targets[:, :-1].where(later, self._tags.pad)
        steps = torch.arange(later.shape[1], device=later.device)
        after = branches.feed(given, branches.anchors[:, None] + 1 + steps, later, later)
        read = Prediction(
            torch.cat([branches.base.logits, after.logits]),
            torch.cat([branches.base.hidden, after.hidden]),
        )
        # The first target of every row comes first, then the later ones: back into their rows.
        number = torch.zeros_like(self.targets)
        number[:, 0] = torch.arange(len(number), device=number.device)
        number[:, 1:][later] = _counting(later) + len(number)
        return read.of(number[wanted])

    def _read_plainly_once(self) -> Prediction:
        """The same, computed once where several thoughts share a place and its targets."""
        keys = torch.cat([self._rows[:, None], self._positions[:, None], self.targets], dim=1)
        once, which = keys.unique(dim=0, return_inverse=True)
        places = copy.copy(self)
        places._rows, places._positions, places.targets = once[:, 0], once[:, 1], once[:, 2:]
        wanted = places.targets != IGNORE_INDEX
        number = torch.zeros_like(places.targets)
        number[wanted] = _counting(wanted)
        return places.read_plainly().of(number[which][self.targets != IGNORE_INDEX])


def _counting(chosen: Tensor) -> Tensor:
    """0, 1, … for each true value of a mask."""
    return torch.arange(int(chosen.sum()), device=chosen.device)


def _filled(logits: Tensor, targets: Tensor) -> TargetScores:
    """Scores of the M targets that ``logits`` (M, V) predict, in float32."""
    scores, wanted = _no_scores(targets), targets != IGNORE_INDEX
    logits, chosen = logits.float(), targets[wanted]
    picked = logits.gather(-1, chosen[:, None])[:, 0]
    scores.log_probs[wanted] = picked - logits.logsumexp(dim=-1)
    scores.hits[wanted] = logits.argmax(dim=-1) == chosen
    return scores


def _no_scores(targets: Tensor) -> TargetScores:
    return TargetScores(
        torch.zeros(targets.shape, device=targets.device),
        torch.zeros(targets.shape, dtype=torch.bool, device=targets.device),
    )
