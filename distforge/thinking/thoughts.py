"""Thoughts at chosen places of a batch of texts, sampled in parallel.

A thought at a position sees the text up to there, and itself. All thoughts of a batch grow one
token in a forward pass, over the one cache of the texts (see `branch_attention`); the probabilities
are those of writing each thought alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.thinking.branches import Branches
from distforge.thinking.language_model import evaluating
from distforge.thinking.sampling import ThoughtConfig, draw, restricted_logits
from distforge.thinking.tags import Tags

__all__ = [
    "Tags",
    "ThoughtConfig",
    "Thoughts",
    "contents_of",
    "join_thoughts",
    "restricted_logits",
    "sample_thoughts",
    "stack_padded",
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


def join_thoughts(parts: Sequence[Thoughts], pad: int = 0) -> Thoughts:
    """All of them, one part under another; ``pad`` fills up the tokens of shorter parts."""
    return Thoughts(
        rows=torch.cat([part.rows for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        tokens=stack_padded([part.tokens for part in parts], pad),
        lengths=torch.cat([part.lengths for part in parts]),
        closed=torch.cat([part.closed for part in parts]),
        log_probs=stack_padded([part.log_probs for part in parts], 0.0),
    )


def stack_padded(parts: Sequence[Tensor], fill: float) -> Tensor:
    """(n_i, w_i) matrices one under another, filled up on the right."""
    width = max(part.shape[1] for part in parts)
    padded = [
        torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts
    ]
    return torch.cat(padded)


def contents_of(thoughts: Thoughts) -> list[tuple[int, ...]]:
    """The tokens between the tags, of each thought."""
    lengths = thoughts.content_lengths.tolist()
    rows = zip(thoughts.tokens.tolist(), lengths, strict=True)
    return [tuple(row[:length]) for row, length in rows]


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
        return no_thoughts(rows, positions, config)
    with evaluating(model) as lm:
        capacity = config.max_tokens + 2
        branches = Branches(lm, input_ids, attention_mask, rows, positions, capacity)
        return grow(branches, rows, positions, tags, config, generator, shrink=True)[0]


@dataclass(frozen=True)
class Block:
    """(N, s) tokens of branches that the model has not read yet; see `Branches.feed`."""

    tokens: Tensor
    places: Tensor
    valid: Tensor


def grow(
    branches: Branches,
    rows: Tensor,
    positions: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    generator: torch.Generator | None,
    *,
    shrink: bool,
) -> tuple[Thoughts, Block]:
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
        logits = restricted_logits(branches.feed(*block, going[:, None]).logits, tags, config)
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
    return thoughts, Block(last[:, None], places[:, None], live[:, None])


def _uniform(count: int, config: ThoughtConfig, generator: torch.Generator | None) -> Tensor:
    if config.greedy:
        return torch.zeros(0)
    if generator is None:
        raise InputError("sampling thoughts needs a torch.Generator; give one, or be greedy")
    return torch.rand(count, config.max_tokens, generator=generator, device=generator.device)


def no_thoughts(rows: Tensor, positions: Tensor, config: ThoughtConfig) -> Thoughts:
    tokens = rows.new_zeros(0, config.max_tokens)
    return Thoughts(rows, positions, tokens, rows, rows.bool(), tokens.float())
