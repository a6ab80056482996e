"""Decoding in batches, greedy or sampled: a common beginning is read once, ended rows are dropped.

Solved examples in front of every question are most of a prompt, so a batch reads them as one text
that its rows branch from, and keeps their keys and values once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distforge.evaluation.thin_products import thin_products
from distforge.thinking.branches import Branches
from distforge.thinking.sampling import draw, without_ids

# Rows that ended are dropped as soon as no more than this share goes on: each time copies the rest.
_FULL_ENOUGH = 0.9
# A shared beginning is read apart when that saves at least this share of all tokens that are read:
# what is read behind it attends more slowly.
_WORTH_SHARING = 0.15
# Tokens after which rows are asked whether they have ended of themselves.
_ASKED_EVERY = 8

Ended = Callable[[list[int]], bool]
"""Whether what was written so far makes all that follows unwanted."""
Steps = Callable[[int, int], None]
"""Is called with (tokens written of each row that goes on, rows that go on) as they are written."""


@torch.no_grad()
def write_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    pad: int,
    banned: Sequence[int] = (),
    ended: Ended | None = None,
    steps: Steps | None = None,
    temperature: float = 0.0,
) -> list[list[int]]:
    """The likeliest tokens after each of ``rows``, one by one, or sampled ones.

    Args:
        rows: token ids, without padding; at least one each.
        stops: ids that end a row, of which they are the last token.
        banned: never written.
        ended: asked of every row now and then; it may be given tokens behind the end.
        steps: told of every token.
        temperature: above 0, tokens are sampled (by torch's own random state, of the device) from
            the logits divided by it.

    Raises:
        InputError: see `Branches`: a model that cannot branch, or no room in its context.
    """
    banned = tuple(banned)
    with thin_products(model):
        branches, logits, places = _begin(model, rows, max_new_tokens, pad)
        every = torch.arange(len(rows), device=model.device)
        here, live = every, torch.ones_like(every, dtype=torch.bool)
        lengths = torch.zeros_like(every)
        columns: list[Tensor] = []
        ends = torch.tensor(list(stops), dtype=torch.int64, device=model.device)
        for step in range(1, max_new_tokens + 1):
            token = torch.full_like(here, pad)
            # Drawn for all: what a row becomes does not depend on which others have ended.
            uniform = (
                torch.rand(len(rows), device=model.device)[here[live]] if temperature else None
            )
            token[live] = _chosen(without_ids(logits.float(), banned), temperature, uniform)
            columns.append(torch.full_like(every, pad).index_put((here,), token))
            lengths[here[live]] = step
            live = live & ~torch.isin(token, ends)
            if ended and step % _ASKED_EVERY == 0:
                live = live & ~_asked(ended, columns, here)
            going = live.nonzero()[:, 0]
            if steps:
                steps(step, len(going))
            if not len(going) or step == max_new_tokens:
                break
            if len(going) <= _FULL_ENOUGH * len(live):
                branches = branches.at(going)
                here, token, places, live = (part[going] for part in (here, token, places, live))
            wanted = live[:, None]
            logits = branches.feed(token[:, None], places[:, None], wanted, wanted).logits
            places = places + 1
    written = torch.stack(columns, dim=1).tolist()
    return [row[:length] for row, length in zip(written, lengths.tolist(), strict=True)]


def _begin(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], new: int, pad: int
) -> tuple[Branches, Tensor, Tensor]:
    """All rows read: their branches, the logits (N, V) of what follows, and its places (N,)."""
    shared = _shared(rows)
    texts = [rows[0][:shared]] if shared else rows
    rest, device = [row[shared:] for row in rows], model.device
    ids, mask = _padded(texts, pad, device)
    which = torch.arange(len(rows), device=device) % len(texts)
    anchors = mask.sum(dim=1)[which] - 1
    capacity = new + (max(map(len, rest)) if shared else 0)
    branches = Branches(model, ids, mask.long(), which, anchors, capacity, base=not shared)
    if branches.base is not None:
        return branches, branches.base.logits, anchors + 1
    tokens, valid = _padded(rest, pad, device)
    columns = torch.arange(tokens.shape[1], device=device)
    lengths = valid.sum(dim=1)
    last = columns == lengths[:, None] - 1
    read = branches.feed(tokens, (shared + columns).expand_as(tokens), valid, last)
    return branches, read.logits, shared + lengths


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens are read once for all rows; at least one of each row is left."""
    # What the first and the last in order begin with, all between them do.
    first, last = min(map(list, rows)), max(map(list, rows))
    pairs = zip(first, last, strict=False)
    apart = next((place for place, (one, other) in enumerate(pairs) if one != other), len(first))
    alike = min(apart, *(len(row) - 1 for row in rows))
    saved = alike * (len(rows) - 1)
    return alike if saved and saved >= _WORTH_SHARING * sum(map(len, rows)) else 0


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (N, L), filled on the right, and which of them are no filling."""
    ids = pad_sequence([torch.tensor(list(row)) for row in rows], True, pad).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(ids.shape[1], device=device) < lengths[:, None]


def _asked(ended: Ended, columns: Sequence[Tensor], here: Tensor) -> Tensor:
    written = torch.stack(list(columns), dim=1)[here].tolist()
    return torch.tensor([ended(row) for row in written], device=here.device)


def _chosen(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    if uniform is None:
        return logits.argmax(dim=-1)
    return draw(logits / temperature, uniform)[0]
