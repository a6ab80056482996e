"""Where to think: after every token, at intervals, where the model is unsure, before an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from distforge.errors import InputError, require_choice, require_in
from distforge.thinking.items import ThoughtItem, pad_texts
from distforge.thinking.language_model import evaluating
from distforge.thinking.sampling import entropy as entropy_of_log_probs
from distforge.thinking.tags import Tags

PositionKind = Literal["all", "interval", "entropy", "answer"]


@dataclass(frozen=True)
class PositionsConfig:
    """Which tokens of a text are followed by a thought.

    kind: "all" of them; every ``interval``-th; those of highest no-think "entropy"; or the last one
        of a question, before its "answer".
    interval: distance of thoughts in tokens, for "interval".
    fraction: for "entropy", the share (0, 1] of a text's tokens that are thought at.
    count: for "entropy", above 0 their number instead of ``fraction``.
    threshold: for "entropy" while generating, where there is no text to rank: think where the
        entropy of the next token, in nats, is above it.
    horizon: most tokens that a thought helps to generate, before the text goes on without it; as
        many as there were targets in training. For "answer" there is no limit.

    Raises:
        InputError: a value out of its range.
    """

    kind: PositionKind = "answer"
    interval: int = 8
    fraction: float = 0.25
    count: int = 0
    threshold: float = 2.0
    horizon: int = 1

    def __post_init__(self) -> None:
        require_choice("positions.kind", self.kind, get_args(PositionKind))
        require_in("[1, inf]", interval=self.interval, horizon=self.horizon)
        require_in("[0, inf]", count=self.count)
        require_in("(0, 1]", fraction=self.fraction)


def choose_positions(
    config: PositionsConfig,
    attention_mask: Tensor,
    *,
    following: int = 1,
    entropy: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and positions (N,) int64 of the thoughts, in reading order.

    Args:
        attention_mask: (B, L), padded on either side.
        following: tokens of the text that must come after a position (the targets); "answer" asks
            for none.
        entropy: (B, L) in nats, for "entropy"; see `next_token_entropy`.

    Raises:
        InputError: an empty text for "answer", or no entropy where it is needed.
    """
    mask = attention_mask.bool()
    lengths = mask.sum(dim=1, keepdim=True)
    place = mask.long().cumsum(dim=1) - 1  # of each token in its text
    if config.kind == "answer":
        if not lengths.all():
            empty = int((lengths == 0).nonzero()[0, 0])
            raise InputError(f"text {empty} is empty; a thought needs a token to follow")
        chosen = mask & (place == lengths - 1)
    else:
        chosen = mask & (place < lengths - following)
    if config.kind == "interval":
        chosen &= place % config.interval == config.interval - 1
    elif config.kind == "entropy":
        if entropy is None or entropy.shape != mask.shape:
            raise InputError("positions of high entropy need the entropy (B, L) of the texts")
        chosen = _highest(entropy, chosen, config)
    rows, positions = chosen.nonzero(as_tuple=True)
    return rows, positions


def count_places(config: PositionsConfig, tokens: int) -> int:
    """At how many places of a text of so many tokens a thought is had, at most."""
    before = max(0, tokens - config.horizon)
    if config.kind == "answer":
        return 1
    if config.kind == "interval":
        return before // config.interval
    if config.kind == "entropy":
        return min(before, config.count or math.ceil(config.fraction * before))
    return before


def with_places(items: Sequence[ThoughtItem], config: PositionsConfig) -> list[ThoughtItem]:
    """The items that `placed` finds a place in, whatever the model.

    Raises:
        InputError: there is none, and the texts are the reason.
    """
    behind = config.horizon + (config.interval - 1 if config.kind == "interval" else 0)
    least = 0 if config.kind == "answer" else behind
    found = [item for item in items if item.positions or len(item.text) > least]
    if items and not found:
        longest = max(len(item.text) for item in items)
        raise InputError(
            f"none of {len(items)} texts, of {longest} tokens at most, has a place to think at: "
            f"positions.kind {config.kind!r} needs more than {least}; raise text.tokens or lower "
            "positions.interval or positions.horizon"
        )
    return found


def placed(
    items: Sequence[ThoughtItem], model: nn.Module, config: PositionsConfig, tags: Tags
) -> list[ThoughtItem]:
    """The items with places to think at, and what follows them in the text.

    Items that have places keep them. Where the places depend on the model's uncertainty, it is
    asked.
    """
    if all(item.positions for item in items):
        return list(items)
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in pad_texts(items, tags.pad))
    entropy = next_token_entropy(model, ids, mask) if config.kind == "entropy" else None
    rows, positions = choose_positions(config, mask, following=config.horizon, entropy=entropy)
    places: list[list[int]] = [[] for _ in items]
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        places[row].append(position)
    return [
        replace(
            item,
            positions=tuple(own),
            targets=tuple(item.text[p + 1 : p + 1 + config.horizon] for p in own),
        )
        for item, own in zip(items, places, strict=True)
    ]


def next_token_entropy(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, L) float32: entropy in nats of the next token after each one, without thoughts.

    Padding is 0. The texts are read one by one, so logits of one text are held at a time.
    """
    mask = attention_mask.bool()
    result = torch.zeros(input_ids.shape, device=input_ids.device)
    with evaluating(model) as lm:
        for row, (ids, inside) in enumerate(zip(input_ids, mask, strict=True)):
            if inside.any():
                logits = lm(input_ids=ids[inside][None].to(lm.device), use_cache=False).logits[0]
                result[row, inside] = entropy_of(logits).to(result.device)
    return result


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy (...) in nats of the distributions with ``logits`` (..., V), in float32."""
    return entropy_of_log_probs(logits.float().log_softmax(dim=-1))


def _highest(entropy: Tensor, eligible: Tensor, config: PositionsConfig) -> Tensor:
    """The wanted number of eligible positions of highest entropy in each text; ties: the first."""
    available = eligible.sum(dim=1, keepdim=True)
    if config.count:
        wanted = available.clamp(max=config.count)
    else:
        wanted = (available * config.fraction).ceil().long()
    order = (
        entropy.float()
        .masked_fill(~eligible, -torch.inf)
        .argsort(dim=1, descending=True, stable=True)
    )
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return eligible & (rank < wanted)
