"""How likely a causal LM finds given ids after others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from distforge.activity import doing
from distforge.training.loss import keeps_logits


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], known: Sequence[int], batch_size: int
) -> list[float]:
    """Log-probability of each row's ids from its ``known``-th on, in nats.

    Args:
        model: left in the mode (training or not) it was in.
        rows: token ids, without padding.
        known: how many of a row's ids are given, at least one.
        batch_size: rows at once, those of like length together.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: dict[int, float] = {}
    was_training = model.training
    model.eval()
    try:
        with doing("scoring answers") as count:
            for start in range(0, len(order), batch_size):
                count(start, len(order))
                chosen = order[start : start + batch_size]
                nats = _batch(model, [rows[i] for i in chosen], [known[i] for i in chosen])
                found.update(zip(chosen, nats, strict=True))
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(rows))]


def _batch(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], known: Sequence[int]
) -> list[float]:
    width, device = max(map(len, rows)), model.device
    # Padding stands behind: what it is, and that it is attended to by itself, changes nothing.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    columns = torch.arange(1, width, device=device)
    lengths, first = (
        torch.tensor(values, device=device)[:, None]
        for values in ([len(row) for row in rows], known)
    )
    wanted = (columns >= first) & (columns < lengths)
    kept = width - int(first.min()) + 1 if keeps_logits(model) else width
    options = {"logits_to_keep": kept} if keeps_logits(model) else {}
    logits = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options
    ).logits[:, :-1]
    cut = width - kept
    own = logits.float().log_softmax(dim=-1).gather(2, ids[:, cut + 1 :, None])[..., 0]
    return [float(value) for value in (own * wanted[:, cut:]).sum(dim=1)]
