"""What stands in for a thought: another item's, random tokens, one and the same token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distforge.errors import InputError
from distforge.thinking.thoughts import Thoughts


def shuffled(own: Thoughts, generator: torch.Generator) -> Thoughts:
    """Everyone gets another's: a rotation in random order, so that nobody keeps theirs.

    Raises:
        InputError: there is only one.
    """
    order = torch.randperm(len(own), generator=generator).to(own.rows.device)
    return _dealt_around(own, order)


def matched(own: Thoughts, generator: torch.Generator) -> Thoughts:
    """As `shuffled`, but from one to the next longer, the longest going to the shortest: what is
    put in differs in length as little as it can.

    Raises:
        InputError: there is only one.
    """
    # Equal lengths in random order, so that neighbours in the data are not neighbours here.
    order = torch.randperm(len(own), generator=generator).to(own.rows.device)
    order = order[own.content_lengths[order].argsort(stable=True)]
    return _dealt_around(own, order)


def filler(own: Thoughts) -> Thoughts:
    """One and the same token, as many: the commonest that the thoughts hold."""
    inside = _inside(own)
    written = own.tokens[inside]
    if not len(written):
        return own
    common = torch.full_like(own.tokens, int(written.mode().values))
    return replace(own, tokens=torch.where(inside, common, own.tokens))


def random(own: Thoughts, generator: torch.Generator) -> Thoughts:
    """Tokens drawn from all that the thoughts hold, as many."""
    inside = _inside(own)
    written = own.tokens[inside]
    if not len(written):
        return own
    draw = torch.randint(len(written), own.tokens.shape, generator=generator)
    other = written[draw.to(written.device)]
    return replace(own, tokens=torch.where(inside, other, own.tokens))


def _inside(own: Thoughts) -> Tensor:
    columns = torch.arange(own.tokens.shape[1], device=own.tokens.device)
    return columns < own.content_lengths[:, None]


def _dealt_around(own: Thoughts, order: Tensor) -> Thoughts:
    if len(own) < 2:
        raise InputError(
            "one thought alone cannot be exchanged for another's; examine at least two items"
        )
    source = torch.empty_like(order)
    source[order] = order.roll(1)
    return replace(
        own,
        tokens=own.tokens[source],
        lengths=own.lengths[source],
        closed=own.closed[source],
    )
