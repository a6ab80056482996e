"""How well the text after a place is predicted, with a thought and without.

With a thought means as a `ThinkingModel` predicts: where it has a mixing head, by the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distforge.data.dataset import IGNORE_INDEX
from distforge.thinking.branches import Branches
from distforge.thinking.language_model import Prediction, evaluating, language_model
from distforge.thinking.mixing import MixingHead
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Block, ThoughtConfig, Thoughts, grow, no_thoughts


@dataclass(frozen=True)
class TargetScores:
    """Of N targets of at most n tokens: ``log_probs`` (N, n) float32 in nats, 0 on padding;
    ``hits`` (N, n) boolean, whether the token is the likeliest, false on padding."""

    log_probs: Tensor
    hits: Tensor


class Places:
    """N places of a batch of texts, and what should follow each.

    Args:
        model: a `ThinkingModel` or any causal LM of transformers; left in the mode that it was in.
        input_ids, attention_mask: (B, L), padded on either side.
        rows, positions: (N,) int64: text of each place, and column of the last token before it.
        targets: (N, n) int64, what should follow, padded behind with -100 (which scores 0).

    Scores are in nats, without a temperature. Errors are those of `Branches`.
    """

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
        device = language_model(model).device
        self._model, self._tags = model, tags
        self._texts = (input_ids, attention_mask)
        self._rows, self._positions = rows.to(device), positions.to(device)
        self._targets = targets.to(device)
        self._wanted = self._targets != IGNORE_INDEX

    def think(
        self, config: ThoughtConfig, generator: torch.Generator | None = None
    ) -> tuple[Thoughts, TargetScores]:
        """`sample_thoughts` here, and `score` of them: the cache of the thoughts is gone on with.

        Raises:
            InputError: no generator where one is needed.
        """
        rows, positions = self._rows, self._positions
        if not len(rows):
            return no_thoughts(rows, positions, config), _no_scores(self._targets)
        with evaluating(self._model):
            branches = self._branches(config.max_tokens + 2)
            thoughts, unread = grow(
                branches, rows, positions, self._tags, config, generator, shrink=False
            )
            if not self._wanted.any():
                return thoughts, _no_scores(self._targets)
            logits = self._predict_after(branches, unread, thoughts)
            return thoughts, _filled(logits, self._targets)

    def score(self, thoughts: Thoughts) -> TargetScores:
        """How likely each target token is after ``<think> thought </think>``.

        One forward pass over the texts and one over all thoughts and targets; with a mixing head,
        one more over the texts and one over the targets at their places.

        Args:
            thoughts: one for each place, in their order; they may be anyone's.
        """
        if not (len(thoughts) and self._wanted.any()):
            return _no_scores(self._targets)
        return _filled(self.predict(thoughts), self._targets)

    def predict(self, thoughts: Thoughts | None) -> Tensor:
        """(M, V) logits of the M target tokens, row by row, after ``<think> thought </think>``, or,
        without thoughts, directly after the text.

        All of the vocabulary at once: give as many places as memory has room for.

        Args:
            thoughts: as for `score`; None for none and no tags.
        """
        with evaluating(self._model) as lm:
            if thoughts is None:
                return self._read_plainly().logits
            tokens = thoughts.tokens.to(lm.device)
            branches = self._branches(tokens.shape[1] + 2)
            opening = torch.full_like(tokens[:, :1], self._tags.open)
            inside = torch.arange(tokens.shape[1], device=lm.device)
            inside = inside < thoughts.content_lengths.to(lm.device)[:, None]
            steps = torch.arange(tokens.shape[1] + 1, device=lm.device)
            written = Block(
                torch.cat([opening, tokens], dim=1),
                branches.anchors[:, None] + 1 + steps,
                torch.cat([torch.ones_like(inside[:, :1]), inside], dim=1),
            )
            return self._predict_after(branches, written, thoughts)

    def score_without_thoughts(self) -> TargetScores:
        """As `score`, of targets that follow the text directly, without tags."""
        if not len(self._rows):
            return _no_scores(self._targets)
        return _filled(self.predict(None), self._targets)

    def _branches(self, room: int, *, base: bool = False) -> Branches:
        """One branch a place, with room for so many tokens and the targets."""
        lm, capacity = language_model(self._model), room + self._targets.shape[1]
        return Branches(lm, *self._texts, self._rows, self._positions, capacity, base=base)

    def _predict_after(self, branches: Branches, unread: Block, thoughts: Thoughts) -> Tensor:
        """Feed what is unread of the thoughts, ``</think>`` and the targets."""
        targets, wanted = self._targets, self._wanted
        given = targets[:, :-1].where(wanted[:, :-1], self._tags.pad)
        closing = torch.full_like(targets[:, :1], self._tags.close)
        first = branches.anchors + 2 + thoughts.content_lengths.to(wanted.device)
        places = first[:, None] + torch.arange(wanted.shape[1], device=wanted.device)
        read = branches.feed(
            torch.cat([unread.tokens, closing, given], dim=1),
            torch.cat([unread.places, places], dim=1),
            torch.cat([unread.valid, wanted], dim=1),
            torch.cat([torch.zeros_like(unread.valid), wanted], dim=1),
        )
        head: MixingHead | None = getattr(self._model, "mixing_head", None)
        return read.logits if head is None else head.mix(self._read_plainly_once(), read)

    def _read_plainly(self) -> Prediction:
        """What is predicted at the M targets, row by row, where they follow the text directly."""
        branches = self._branches(0, base=True)
        assert branches.base is not None
        later = self._wanted[:, 1:]
        if not later.any():
            return branches.base.of(self._wanted[:, 0])
        given = self._targets[:, :-1].where(later, self._tags.pad)
        steps = torch.arange(later.shape[1], device=later.device)
        after = branches.feed(given, branches.anchors[:, None] + 1 + steps, later, later)
        read = Prediction(
            torch.cat([branches.base.logits, after.logits]),
            torch.cat([branches.base.hidden, after.hidden]),
        )
        # The first target of every row comes first, then the later ones: back into their rows.
        first = torch.arange(len(later), device=later.device)[:, None]
        number = torch.cat([first, _numbered(later) + len(later)], dim=1)
        return read.of(number[self._wanted])

    def _read_plainly_once(self) -> Prediction:
        """The same, computed once where several thoughts share a place and its targets."""
        keys = torch.cat([self._rows[:, None], self._positions[:, None], self._targets], dim=1)
        once, which = keys.unique(dim=0, return_inverse=True)
        rows, positions, targets = once[:, 0], once[:, 1], once[:, 2:]
        places = Places(self._model, *self._texts, rows, positions, targets, self._tags)
        number = _numbered(places._wanted)
        return places._read_plainly().of(number[which][self._wanted])


def _numbered(chosen: Tensor) -> Tensor:
    """Of each true value of a mask, how many come before it; elsewhere, anything."""
    return (chosen.flatten().cumsum(0) - 1).view_as(chosen)


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
