"""Thoughts at chosen places of a batch of texts, sampled in parallel.

A thought at a position sees the text up to there, and itself. All thoughts of a batch grow one
token in a forward pass, over the one cache of the texts (see `branch_attention`); the probabilities
are those of writing each thought alone. Thoughts at one place are one branch as long as they read
the same, as most thoughts of a model that is sure of itself do for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from distforge.activity import counted
from distforge.errors import InputError
from distforge.thinking.branches import Branches
from distforge.thinking.language_model import evaluating
from distforge.thinking.sampling import ThoughtConfig, draw_each, restricted_logits
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

# Branches that ended are dropped as soon as no more than this share of them goes on: each time
# copies the others.
_FULL_ENOUGH = 0.75


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
        branches = Branches(lm, input_ids, attention_mask, rows, positions, capacity, shared=True)
        return grow(branches, rows, positions, tags, config, generator)[0]


@dataclass(frozen=True)
class Block:
    """(F, s) tokens of branches that the model has not read yet; see `Branches.feed`."""

    tokens: Tensor
    places: Tensor
    valid: Tensor

    def at(self, chosen: Tensor) -> Block:
        return Block(self.tokens[chosen], self.places[chosen], self.valid[chosen])


@dataclass(frozen=True)
class Written:
    """F branches that hold M whole thoughts.

    thoughts, owner: (M,) int64, which of all thoughts, and the branch of each. unread: of the
    branches, what is still to be read.
    """

    branches: Branches
    thoughts: Tensor
    owner: Tensor
    unread: Block


def grow(
    branches: Branches,
    rows: Tensor,
    positions: Tensor,
    tags: Tags,
    config: ThoughtConfig,
    generator: torch.Generator | None,
    *,
    keep: bool = False,
) -> tuple[Thoughts, list[Written]]:
    """The thoughts, and where ``keep`` says so the branches that hold them.

    Args:
        branches: as they are before any token, ``shared``.
    """
    count, device = len(rows), branches.anchors.device
    uniform = _uniform(count, config, generator).to(device)
    thoughts = Thoughts(
        rows=rows.to(device),
        positions=positions.to(device),
        tokens=torch.full((count, config.max_tokens), tags.pad, device=device),
        lengths=torch.zeros(count, dtype=torch.int64, device=device),
        closed=torch.zeros(count, dtype=torch.bool, device=device),
        log_probs=torch.zeros(count, config.max_tokens, device=device),
    )
    growth = _Growth(branches, thoughts, tags, keep)
    for step in counted(range(config.max_tokens), "writing thoughts, by token"):
        if not growth.live.any():
            break
        logits = restricted_logits(growth.read(), tags, config)
        growth.write(step, logits, None if config.greedy else uniform[:, step])
    return thoughts, growth.written()


class _Growth:
    """Thoughts on their way. Each is in a branch, with all others that read the same so far.

    Of the thoughts, ``live`` (N,) says which go on, and ``_owner`` (N,) in which branch each is, -1
    where that was set aside. Of the branches, ``_last`` (F,) is unread, at ``_places``, and
    ``_going`` says whether a thought in it goes on.
    """

    def __init__(self, branches: Branches, thoughts: Thoughts, tags: Tags, keep: bool) -> None:
        self._branches, self._thoughts = branches, thoughts
        self._close, self._keep = tags.close, keep
        self._owner = branches.owner.clone()
        self.live = torch.ones_like(thoughts.closed)
        self._last = torch.full_like(branches.anchors, tags.open)
        self._places = branches.anchors + 1
        self._going = torch.ones_like(self._last, dtype=torch.bool)
        self._aside: list[Written] = []

    def read(self) -> Tensor:
        """Logits of the next token in each branch that goes on."""
        going = self._going[:, None]
        return self._branches.feed(self._last[:, None], self._places[:, None], going, going).logits

    def write(self, step: int, logits: Tensor, uniform: Tensor | None) -> None:
        """Draw a token for each thought that goes on; thoughts part where their tokens do."""
        thoughts, living = self._thoughts, self.live.nonzero()[:, 0]
        branch = self._owner[living]
        number = self._going.cumsum(0) - 1
        own = None if uniform is None else uniform[living]
        tokens, scores = draw_each(logits, number[branch], own)
        thoughts.tokens[living, step], thoughts.log_probs[living, step] = tokens, scores
        thoughts.lengths[living] += 1
        # What is not "learned" never draws this.
        closed = tokens == self._close
        thoughts.closed[living], self.live[living] = closed, ~closed
        if not self._keep:
            self._owner[living[closed]] = -1
        width = logits.shape[-1]
        distinct, child = (branch * width + tokens).unique(return_inverse=True)
        self._places = self._places + self._going
        self._go_on(distinct // width, distinct % width, living, child)

    def _go_on(self, parent: Tensor, token: Tensor, living: Tensor, child: Tensor) -> None:
        """Args: the distinct continuations, sorted by the branch that they continue, and which of
        them each of the thoughts ``living`` wrote."""
        on = token != self._close
        held = parent if self._keep else parent[on]
        ended = ~self._going
        ended[parent[~on]] = True
        if (held.diff() == 0).any():
            self._set_aside(ended)
            self._take(parent[on])
            self._owner[living] = torch.where(on, on.cumsum(0) - 1, -1)[child]
            self._last = token[on]
            return
        self._last[parent[on]] = token[on]
        self._going = torch.zeros_like(self._going)
        self._going[parent[on]] = True
        going = self._going.nonzero()[:, 0]
        if 0 < len(going) <= _FULL_ENOUGH * len(self._going):
            self._set_aside(~self._going)
            self._owner = torch.where(self.live, (self._going.cumsum(0) - 1)[self._owner], -1)
            self._take(going)

    def _take(self, branches: Tensor) -> None:
        self._branches = self._branches.at(branches)
        self._last, self._places = self._last[branches], self._places[branches]
        self._going = torch.ones_like(self._last, dtype=torch.bool)

    def _set_aside(self, ended: Tensor) -> None:
        """Keep the branches of a mask for who wants them."""
        thoughts = (~self.live & (self._owner >= 0)).nonzero()[:, 0]
        if not len(thoughts):
            return
        branches = self._branches.at(ended.nonzero()[:, 0])
        nothing = self._last.new_zeros(len(branches), 0)
        owner = (ended.cumsum(0) - 1)[self._owner[thoughts]]
        unread = Block(nothing, nothing, nothing.bool())
        self._aside.append(Written(branches, thoughts, owner, unread))
        self._owner[thoughts] = -1

    def written(self) -> list[Written]:
        """Where all thoughts are, if they were kept."""
        thoughts = (self._owner >= 0).nonzero()[:, 0]
        unread = Block(self._last[:, None], self._places[:, None], self._going[:, None])
        rest = Written(self._branches, thoughts, self._owner[thoughts], unread)
        return [*self._aside, rest] if self._keep and len(thoughts) else self._aside


def _uniform(count: int, config: ThoughtConfig, generator: torch.Generator | None) -> Tensor:
    if config.greedy:
        return torch.zeros(0)
    if generator is None:
        raise InputError("sampling thoughts needs a torch.Generator; give one, or be greedy")
    return torch.rand(count, config.max_tokens, generator=generator, device=generator.device)


def no_thoughts(rows: Tensor, positions: Tensor, config: ThoughtConfig) -> Thoughts:
    tokens = rows.new_zeros(0, config.max_tokens)
    return Thoughts(rows, positions, tokens, rows, rows.bool(), tokens.float())
