"""Thoughts at chosen places of a batch of texts: sampled and scored in parallel.

A thought at a position sees the text up to there, and itself. All thoughts of a batch grow one
token in a forward pass, over the one cache of the texts (see `branch_attention`); the probabilities
are those of writing each thought alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.quietstar.branches import Branches
from distforge.quietstar.language_model import evaluating
from distforge.quietstar.sampling import ThoughtConfig, draw, restricted_logits
from distforge.quietstar.tags import Tags
from distforge.training.loss import IGNORE_INDEX

__all__ = [
    "Tags",
    "TargetScores",
    "ThoughtConfig",
    "Thoughts",
    "restricted_logits",
    "sample_thoughts",
    "score_targets",
    "score_without_thoughts",
    "think_and_score",
]


@dataclass(frozen=True)
class Thoughts:
    """N thoughts.

    rows, positions: (N,) int64: text of the batch, and column of the last token that is seen.
    tokens: (N, T) int64, what was written, padded behind; a ``</think>`` that the model wrote is
        part of it, an appended one is not.
    lengths: (N,) int64, written tokens.
    closed: (N,) boolean, whether the model wrote ``</think>``.
    log_probs: (N, T) float32, log-probability of each written token under the distribution that it
        was drawn from (`restricted_logits`), in nats; 0 on padding.
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    lengths: Tensor
    closed: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def content_lengths(self) -> Tensor:
        """(N,) int64, tokens between the tags."""
        return self.lengths - self.closed.long()

    def at(self, chosen: Tensor | slice) -> Thoughts:
        """The thoughts at an index, a mask or a slice of the N."""
        return Thoughts(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


@dataclass(frozen=True)
class TargetScores:
    """Of N targets of at most n tokens: ``log_probs`` (N, n) float32 in nats, 0 on padding;
    ``hits`` (N, n) boolean, whether the token is the likeliest, false on padding."""

    log_probs: Tensor
    hits: Tensor


def sample_thoughts(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    positions: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    generator: torch.Generator | None = None,
) -> Thoughts:
    """Write N thoughts, one for each pair of ``rows`` and ``positions``; repeat a pair for more.

    Args:
        model: a `ThinkingModel` or any causal LM of transformers; left in the mode that it was in.
        input_ids, attention_mask: (B, L), padded on either side.
        rows, positions: (N,) int64: text, and column of the last token that the thought sees.
        generator: of sampling, on any device; needed unless ``config.greedy``. Thought i draws from
            row i of one (N, T) table of uniform numbers, so what it writes depends on no other
            thought.

    Raises:
        InputError: see `Branches`; no generator where one is needed.
    """
    if not len(rows):
        return _no_thoughts(rows, positions, config)
    with evaluating(model) as lm:
        capacity = config.max_tokens + 2
        branches = Branches(lm, input_ids, attention_mask, rows, positions, capacity)
        return _grow(branches, rows, positions, tags, config, generator, shrink=True)[0]


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
        return _no_thoughts(rows, positions, config), _no_scores(targets)
    with evaluating(model) as lm:
        capacity = config.max_tokens + 2 + targets.shape[1]
        branches = Branches(lm, input_ids, attention_mask, rows, positions, capacity)
        thoughts, last = _grow(branches, rows, positions, tags, config, generator, shrink=False)
        return thoughts, _score(branches, last, thoughts, targets, tags)


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

    In nats, without a temperature and without a mixing head: one forward pass over the texts and
    one over all thoughts and targets.
    """
    if not len(thoughts):
        return _no_scores(targets)
    with evaluating(model) as lm:
        capacity = thoughts.tokens.shape[1] + 2 + targets.shape[1]
        rows, positions = thoughts.rows, thoughts.positions
        branches = Branches(lm, input_ids, attention_mask, rows, positions, capacity)
        tokens = thoughts.tokens.to(lm.device)
        opening = torch.full_like(tokens[:, :1], tags.open)
        inside = torch.arange(tokens.shape[1], device=lm.device)
        inside = inside < thoughts.content_lengths.to(lm.device)[:, None]
        steps = torch.arange(tokens.shape[1] + 1, device=lm.device)
        written = _Block(
            torch.cat([opening, tokens], dim=1),
            branches.anchors[:, None] + 1 + steps,
            torch.cat([torch.ones_like(inside[:, :1]), inside], dim=1),
        )
        return _score(branches, written, thoughts, targets, tags)


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
    with evaluating(model) as lm:
        branches = Branches(
            lm, input_ids, attention_mask, rows, positions, targets.shape[1], base=True
        )
        targets = targets.to(lm.device)
        scores = _no_scores(targets)
        assert branches.base_logits is not None
        first = torch.zeros_like(targets, dtype=torch.bool)
        first[:, 0] = targets[:, 0] != IGNORE_INDEX
        _fill(scores, first, branches.base_logits[first[:, 0]], targets)
        wanted = targets[:, 1:] != IGNORE_INDEX
        if wanted.any():
            given = targets[:, :-1].where(wanted, tags.pad)
            steps = torch.arange(given.shape[1], device=lm.device)
            places = branches.anchors[:, None] + 1 + steps
            logits = branches.feed(given, places, wanted, wanted)
            later = torch.cat([torch.zeros_like(first[:, :1]), wanted], dim=1)
            _fill(scores, later, logits, targets)
        return scores


@dataclass(frozen=True)
class _Block:
    """(N, s) tokens of branches that the model has not read yet; see `Branches.feed`."""

    tokens: Tensor
    places: Tensor
    valid: Tensor


def _grow(
    branches: Branches,
    rows: Tensor,
    positions: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    generator: torch.Generator | None,
    *,
    shrink: bool,
) -> tuple[Thoughts, _Block]:
    """The thoughts, and what is still to be read of them; ``shrink`` drops branches that ended."""
    count, device = len(rows), branches.anchors.device
    uniform = _uniform(count, config, generator).to(device)
    tokens = torch.full((count, config.max_tokens), tags.pad, device=device)
    log_probs = torch.zeros(count, config.max_tokens, device=device)
    closed = torch.zeros(count, dtype=torch.bool, device=device)
    lengths = torch.zeros(count, dtype=torch.int64, device=device)
    fed = torch.arange(count, device=device)  # the thoughts that are in the forward pass
    live = torch.ones(count, dtype=torch.bool, device=device)
    last = torch.full((count,), tags.open, device=device)
    places = branches.anchors + 1
    for step in range(config.max_tokens):
        going = live[fed]
        block = (last[fed, None], places[fed, None], going[:, None])
        logits = restricted_logits(branches.feed(*block, going[:, None]), tags, config)
        written, scores = draw(logits, None if config.greedy else uniform[live, step])
        tokens[live, step], log_probs[live, step] = written, scores
        lengths += live
        last = last.index_put((live.nonzero()[:, 0],), written)
        places = places + live
        if config.closing == "learned":
            closed |= live & (last == tags.close)
            live = ~closed
            if not live.any():
                break
            if shrink and 2 * int(live.sum()) <= len(fed):
                branches.keep(live[fed].nonzero()[:, 0])
                fed = live.nonzero()[:, 0]
    thoughts = Thoughts(rows.to(device), positions.to(device), tokens, lengths, closed, log_probs)
    return thoughts, _Block(last[:, None], places[:, None], live[:, None])


def _uniform(count: int, config: ThoughtConfig, generator: torch.Generator | None) -> Tensor:
    if config.greedy:
        return torch.zeros(0)
    if generator is None:
        raise InputError("sampling thoughts needs a torch.Generator; give one, or be greedy")
    return torch.rand(count, config.max_tokens, generator=generator, device=generator.device)


def _score(
    branches: Branches, unread: _Block, thoughts: Thoughts, targets: Tensor, tags: Tags
) -> TargetScores:
    """Feed what is unread, ``</think>`` and the targets."""
    device = branches.anchors.device
    targets = targets.to(device)
    wanted = targets != IGNORE_INDEX
    scores = _no_scores(targets)
    if not wanted.any():
        return scores
    given = targets[:, :-1].where(wanted[:, :-1], tags.pad)
    closing = torch.full_like(targets[:, :1], tags.close)
    first = branches.anchors + 2 + thoughts.content_lengths.to(device)
    places = first[:, None] + torch.arange(targets.shape[1], device=device)
    logits = branches.feed(
        torch.cat([unread.tokens, closing, given], dim=1),
        torch.cat([unread.places, places], dim=1),
        torch.cat([unread.valid, wanted], dim=1),
        torch.cat([torch.zeros_like(unread.valid), wanted], dim=1),
    )
    _fill(scores, wanted, logits, targets)
    return scores


def _fill(scores: TargetScores, wanted: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Write the scores of the M ``wanted`` targets, which ``logits`` (M, V) predict, in float32."""
    logits, chosen = logits.float(), targets[wanted]
    picked = logits.gather(-1, chosen[:, None])[:, 0]
    scores.log_probs[wanted] = picked - logits.logsumexp(dim=-1)
    scores.hits[wanted] = logits.argmax(dim=-1) == chosen


def _no_scores(targets: Tensor) -> TargetScores:
    return TargetScores(
        torch.zeros(targets.shape, device=targets.device),
        torch.zeros(targets.shape, dtype=torch.bool, device=targets.device),
    )


def _no_thoughts(rows: Tensor, positions: Tensor, config: ThoughtConfig) -> Thoughts:
    tokens = rows.new_zeros(0, config.max_tokens)
    return Thoughts(rows, positions, tokens, rows, rows.bool(), tokens.float())
