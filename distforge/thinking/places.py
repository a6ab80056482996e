"""How well the text after a place is predicted, with a thought and without.

With a thought means as a `ThinkingModel` predicts: where it has a mixing head, by the mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distforge.data.dataset import IGNORE_INDEX
from distforge.thinking.branches import Branches
from distforge.thinking.language_model import Prediction, evaluating, language_model
from distforge.thinking.mixing import MixingHead
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Block, ThoughtConfig, Thoughts, Written, grow, no_thoughts

# Slots of texts with their thoughts that are read in one forward pass.
_SLOTS = 8192


@dataclass(frozen=True)
class TargetScores:
    """Of N targets of at most n tokens: ``log_probs`` (N, n) float32 in nats, 0 on padding;
    ``hits`` (N, n) boolean, whether the token is the likeliest, false on padding."""

    log_probs: Tensor
    hits: Tensor


@dataclass(frozen=True)
class _Predicted:
    """Of D distinct thoughts with targets (D, n): ``logits`` (M, V) of the M target tokens.

    ``thoughts`` and ``which`` (K,): which of all thoughts these are, and of the distinct ones.
    """

    thoughts: Tensor
    which: Tensor
    targets: Tensor
    logits: Tensor


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
            branches = self._branches(config.max_tokens + 2, shared=True)
            thoughts, written = grow(
                branches, rows, positions, self._tags, config, generator, keep=True
            )
            return thoughts, self._scored(self._predict_after(written, thoughts))

    def score(self, thoughts: Thoughts) -> TargetScores:
        """How likely each target token is after ``<think> thought </think>``.

        Equal thoughts at one place are read once, in a forward pass over some texts and one over
        their thoughts and targets; with a mixing head, also the targets without a thought.

        Args:
            thoughts: one for each place, in their order; they may be anyone's.
        """
        if not len(thoughts):
            return _no_scores(self._targets)
        with evaluating(self._model):
            return self._scored(self._predict_after(self._unread(thoughts), thoughts))

    def predict(self, thoughts: Thoughts | None) -> Tensor:
        """(M, V) logits of the M target tokens, row by row, after ``<think> thought </think>``, or,
        without thoughts, directly after the text.

        All of the vocabulary at once: give as many places as memory has room for.

        Args:
            thoughts: as for `score`; None for none and no tags.
        """
        with evaluating(self._model):
            if thoughts is None:
                return self._read_plainly_once().logits
            parts = list(self._predict_after(self._unread(thoughts), thoughts))
            number = _numbered(self._wanted)
            logits = parts[0].logits.new_empty(int(self._wanted.sum()), parts[0].logits.shape[-1])
            for part in parts:
                own = _numbered(part.targets != IGNORE_INDEX)[part.which]
                wanted = self._wanted[part.thoughts]
                logits[number[part.thoughts][wanted]] = part.logits[own[wanted]]
            return logits

    def score_without_thoughts(self) -> TargetScores:
        """As `score`, of targets that follow the text directly, without tags."""
        if not len(self._rows):
            return _no_scores(self._targets)
        return _filled(self.predict(None), self._targets)

    def _unread(self, thoughts: Thoughts) -> Iterator[Written]:
        """Branches of the distinct thoughts at each place, of which nothing is read."""
        device = self._rows.device
        tokens, lengths = thoughts.tokens.to(device), thoughts.content_lengths.to(device)
        inside = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        content = tokens.where(inside, self._tags.pad)
        which = [self._rows[:, None], self._positions[:, None], lengths[:, None], content]
        distinct, owner = torch.cat(which, dim=1).unique(dim=0, return_inverse=True)
        for chosen in _portions(distinct[:, 0], distinct[:, 1] + distinct[:, 2]):
            yield self._read_thoughts(distinct[chosen], chosen, owner)

    def _read_thoughts(self, distinct: Tensor, number: Tensor, owner: Tensor) -> Written:
        """Branches for some thoughts, which are unread.

        Args:
            distinct: row, position, length and content of each. number: its own among all
                distinct ones. owner: (N,) that of every thought.
        """
        rows, positions, lengths, content = distinct.split([1, 1, 1, distinct.shape[1] - 3], dim=1)
        steps = torch.arange(int(lengths.max()) + 1, device=lengths.device)
        capacity = len(steps) + 1 + self._targets.shape[1]
        lm = language_model(self._model)
        branches = Branches(lm, *self._texts, rows[:, 0], positions[:, 0], capacity)
        opening = torch.full_like(lengths, self._tags.open)
        unread = Block(
            torch.cat([opening, content[:, : len(steps) - 1]], dim=1),
            branches.anchors[:, None] + 1 + steps,
            steps <= lengths,
        )
        place = torch.full((int(owner.max()) + 1,), -1, device=owner.device)
        place[number] = torch.arange(len(number), device=owner.device)
        thoughts = (place[owner] >= 0).nonzero()[:, 0]
        return Written(branches, thoughts, place[owner[thoughts]], unread)

    def _branches(self, room: int, *, base: bool = False, shared: bool = False) -> Branches:
        """One branch a place, with room for so many tokens and the targets."""
        lm, capacity = language_model(self._model), room + self._targets.shape[1]
        places = (self._rows, self._positions)
        return Branches(lm, *self._texts, *places, capacity, base=base, shared=shared)

    def _predict_after(
        self, written: Iterable[Written], thoughts: Thoughts
    ) -> Iterator[_Predicted]:
        """Feed what is unread of the thoughts, ``</think>`` and the targets."""
        wanted = self._wanted
        head: MixingHead | None = getattr(self._model, "mixing_head", None)
        plain = self._read_plainly_once() if head is not None and wanted.any() else None
        number, lengths = _numbered(wanted), thoughts.content_lengths.to(wanted.device)
        for part in written:
            keys = torch.cat([part.owner[:, None], self._targets[part.thoughts]], dim=1)
            distinct, which = keys.unique(dim=0, return_inverse=True)
            every = torch.arange(len(which), device=which.device)
            # Any of the thoughts that are alike.
            one = part.thoughts[torch.empty_like(distinct[:, 0]).index_put((which,), every)]
            owner, targets = distinct[:, 0], distinct[:, 1:]
            if not wanted[one].any():
                continue
            read = self._read_after(part, owner, targets, lengths[one])
            logits = read.logits
            if head is not None:
                assert plain is not None
                logits = head.mix(plain.of(number[one][wanted[one]]), read)
            yield _Predicted(part.thoughts, which, targets, logits)

    def _scored(self, parts: Iterator[_Predicted]) -> TargetScores:
        scores = _no_scores(self._targets)
        for part in parts:
            found = _filled(part.logits, part.targets)
            scores.log_probs[part.thoughts] = found.log_probs[part.which]
            scores.hits[part.thoughts] = found.hits[part.which]
        return scores

    def _read_after(
        self, part: Written, owner: Tensor, targets: Tensor, lengths: Tensor
    ) -> Prediction:
        """What is predicted at the targets, each after the thought of the branch ``owner``."""
        branches, unread = part.branches, part.unread
        if not torch.equal(owner, torch.arange(len(branches), device=owner.device)):
            branches, unread = branches.at(owner), unread.at(owner)
        wanted = targets != IGNORE_INDEX
        given = targets[:, :-1].where(wanted[:, :-1], self._tags.pad)
        closing = torch.full_like(targets[:, :1], self._tags.close)
        first = branches.anchors + 2 + lengths
        places = first[:, None] + torch.arange(targets.shape[1], device=targets.device)
        return branches.feed(
            torch.cat([unread.tokens, closing, given], dim=1),
            torch.cat([unread.places, places], dim=1),
            torch.cat([unread.valid, wanted], dim=1),
            torch.cat([torch.zeros_like(unread.valid), wanted], dim=1),
        )

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


def _portions(rows: Tensor, lengths: Tensor) -> list[Tensor]:
    """Indices of elements in portions of like length, those of a row together.

    Args:
        rows, lengths: (D,) int64, the text of each element, and its tokens with that.
    """
    _, row = rows.unique(return_inverse=True)
    counts = row.bincount()
    longest = torch.zeros_like(counts).scatter_reduce(0, row, lengths, "amax")
    portion, number, filled = torch.zeros_like(counts), 0, 0
    for one in longest.argsort().tolist():
        filled += int(counts[one])
        if filled * int(longest[one]) > _SLOTS:
            number, filled = number + 1, int(counts[one])
        portion[one] = number
    parts = [(portion[row] == part).nonzero()[:, 0] for part in range(number + 1)]
    return [part for part in parts if len(part)]


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
