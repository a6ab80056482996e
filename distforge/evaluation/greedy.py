"""Decoding in batches, where rows that ended are dropped instead of written on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distforge.thinking.branches import Branches
from distforge.thinking.sampling import draw, without_ids

# Rows that ended are dropped as soon as no more than this share goes on: each time copies the rest.
_FULL_ENOUGH = 0.75
# A shorter common beginning is not worth the second pass.
_WORTH_SHARING = 8


@torch.no_grad()
def write_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    pad: int,
    banned: Sequence[int] = (),
    temperature: float = 0.0,
) -> list[list[int]]:
    """The likeliest tokens after each of ``rows``, one by one, filled up with ``pad``.

    Args:
        rows: token ids, without padding; at least one each.
        stops: ids that end a row, of which they are the last token.
        banned: never written.
        temperature: above 0, tokens are sampled instead (by torch's own random state, of the
            device) from the logits divided by it.

    Raises:
        InputError: see `Branches`: a model that cannot branch, or no room in its context.
    """
    every = torch.arange(len(rows), device=model.device)
    branches, logits = _read(model, rows, max_new_tokens, pad)
    places = torch.tensor([len(row) for row in rows], device=model.device)
    here, live = every, torch.ones_like(every, dtype=torch.bool)
    columns: list[Tensor] = []
    ends = torch.tensor(list(stops), dtype=torch.int64, device=model.device)
    for step in range(max_new_tokens):
        token = torch.full_like(here, pad)
        # Drawn for all, so that what a row becomes does not depend on which others ended.
        uniform = torch.rand(len(rows), device=model.device)[here[live]] if temperature else None
        token[live] = _chosen(without_ids(logits.float(), tuple(banned)), temperature, uniform)
        columns.append(torch.full_like(every, pad).index_put((here,), token))
        live = live & ~torch.isin(token, ends)
        going = live.nonzero()[:, 0]
        if not len(going) or step + 1 == max_new_tokens:
            break
        if len(going) <= _FULL_ENOUGH * len(live):
            branches = branches.at(going)
            here, token, places, live = (part[going] for part in (here, token, places, live))
        wanted = live[:, None]
        logits = branches.feed(token[:, None], places[:, None], wanted, wanted).logits
        places = places + 1
    written: list[list[int]] = torch.stack(columns, dim=1).tolist()
    return written


def _read(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], capacity: int, pad: int
) -> tuple[Branches, Tensor]:
    """One branch a row, and the logits (N, V) of its next token; how the rows all begin (a system
    prompt, examples) is read once."""
    shared = _common(rows)
    head, tails = rows[0][:shared], [row[shared:] for row in rows]
    if shared < _WORTH_SHARING or len(rows) == 1:
        ids, mask = _padded(rows, pad, model.device)
        every, ends = torch.arange(len(rows), device=model.device), mask.sum(dim=1) - 1
        branches = Branches(model, ids, mask.long(), every, ends, capacity, base=True)
        assert branches.base is not None
        return branches, branches.base.logits
    ids, valid = _padded(tails, pad, model.device)
    text = torch.tensor([head], device=model.device)
    first = torch.zeros(len(rows), dtype=torch.int64, device=model.device)
    branches = Branches(
        model, text, torch.ones_like(text), first, first + shared - 1, ids.shape[1] + capacity
    )
    places = shared + torch.arange(ids.shape[1], device=model.device).expand_as(ids)
    last = valid & (places - shared == valid.sum(dim=1, keepdim=True) - 1)
    return branches, branches.feed(ids, places, valid, last).logits


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with, leaving each one at least."""
    least = min(len(row) for row in rows) - 1
    return next((n for n in range(least) if any(r[n] != rows[0][n] for r in rows)), least)


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (N, longest), filled on the right, and where they are no filling."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    texts = [torch.tensor(list(row), device=device) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
    return ids, torch.arange(ids.shape[1], device=device) < lengths[:, None]


def _chosen(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    if uniform is None:
        return logits.argmax(dim=-1)
    return draw(logits / temperature, uniform)[0]
