"""Greedy decoding in batches, where rows that ended are dropped instead of written on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distforge.thinking.branches import Branches
from distforge.thinking.sampling import without_ids

# Rows that ended are dropped as soon as no more than this share goes on: each time copies the rest.
_FULL_ENOUGH = 0.75


@torch.no_grad()
def write_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    pad: int,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """The likeliest tokens after each of ``rows``, one by one, filled up with ``pad``.

    Args:
        rows: token ids, without padding; at least one each.
        stops: ids that end a row, of which they are the last token.
        banned: never written.

    Raises:
        InputError: see `Branches`: a model that cannot branch, or no room in its context.
    """
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    texts = [torch.tensor(list(row)) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
    mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    every = torch.arange(len(rows), device=model.device)
    branches = Branches(model, ids, mask.long(), every, lengths - 1, max_new_tokens, base=True)
    assert branches.base is not None
    logits, places = branches.base.logits, branches.anchors + 1
    here, live = every, torch.ones_like(mask[:, 0])
    columns: list[Tensor] = []
    ends = torch.tensor(list(stops), dtype=torch.int64, device=model.device)
    for step in range(max_new_tokens):
        token = torch.full_like(here, pad)
        token[live] = without_ids(logits.float(), tuple(banned)).argmax(dim=-1)
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
