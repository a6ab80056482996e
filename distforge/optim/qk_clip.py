"""QK-Clip: bound the attention logits by rescaling the query and key projections of each head.

Source: Kimi K2 technical report (2025), "MuonClip". Muon's updates have full rank and let
attention logits grow; scaling the weights of the heads that grew too far bounds them at once, where
a decay would only slow them down and a soft cap would change the model.

Rotary position embedding commutes with the scaling, so a head's logits shrink by exactly gamma_h.
Where queries and keys are normalised after the projection, scaling these weights has no effect: the
gains of the norms are scaled instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distforge.errors import InputError


def clip_factors(max_logits: Tensor, threshold: float, num_kv_heads: int) -> tuple[Tensor, Tensor]:
    """Factors for the query heads and the key heads that bring every head down to ``threshold``.

    Args:
        max_logits: (H,) largest scaled logit S_h of each query head. A head with S_h <= 0, or one
            that was not measured (not finite), is left alone.
        threshold: tau > 0.
        num_kv_heads: number of key heads, a divisor of H; query heads share them in equal,
            consecutive groups (1 < num_kv_heads < H is grouped-query attention).

    Returns:
        (H,) and (num_kv_heads,) float32 factors in (0, 1], with q_h * k_group(h) = gamma_h =
        min(1, tau / S_h) for every head.

    A key head is shared by its group, so it takes the root of the *mildest* gamma there: all heads
    of the group need at least that much. What a head needs beyond it is taken by its own query
    rows. So no head is scaled further than it asks for, both factors stay <= 1, and one key head
    per query head gives the usual root of gamma on each side.

    Raises InputError for a threshold that is not positive and finite.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise InputError(
            f"qk_clip_threshold = {threshold!r} cannot clip: give a positive number, or 0 to "
            "switch QK-Clip off."
        )
    num_heads = len(max_logits)
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise InputError(
            f"{num_heads} query heads cannot share {num_kv_heads} key heads: "
            "the number of key heads must divide that of query heads."
        )
    logits = max_logits.to(torch.float32)
    above = logits.isfinite() & (logits > threshold)
    gamma = torch.where(above, threshold / logits, torch.ones_like(logits))
    grouped = gamma.view(num_kv_heads, -1)
    key = grouped.amax(dim=1).sqrt()
    query = grouped / key[:, None]
    return query.flatten(), key


def scale_heads_(rows: Tensor, factors: Tensor) -> None:
    """Multiplies head i of ``rows``, (H * d, ...) with heads along dimension 0, by factors[i]."""
    if rows.shape[0] % len(factors):
        raise InputError(
            f"{rows.shape[0]} rows cannot belong to {len(factors)} heads of equal size: "
            "give the projection of whole heads."
        )
    heads = rows.unflatten(0, (len(factors), -1))
    shape = (len(factors),) + (1,) * (heads.ndim - 1)
    heads.mul_(factors.to(device=rows.device, dtype=rows.dtype).view(shape))


def count_clipped(max_logits: Tensor, threshold: float) -> int:
    """Number of heads that clip_factors scales down."""
    return int((max_logits.isfinite() & (max_logits > threshold)).sum())
