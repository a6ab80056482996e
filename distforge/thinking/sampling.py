"""How a thought is written, and the distribution that its tokens are drawn from."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distforge.errors import InputError, require_choice, require_in
from distforge.thinking.tags import Tags


@dataclass(frozen=True)
class ThoughtConfig:
    """How a thought is written.

    max_tokens: most tokens between the tags; 0 writes both tags and nothing between.
    closing: "fixed" writes exactly ``max_tokens`` and then ``</think>``; "learned" lets the model
        write ``</think>`` itself, and appends it after ``max_tokens``.
    temperature: divides the logits, in sampling and in scoring alike.
    greedy: take the likeliest token instead of sampling.

    ``<think>``, padding, what ends a text and ids that the tokenizer lacks are never written, nor
    ``</think>`` when "fixed".

    Raises:
        InputError: a value out of its range.
    """

    max_tokens: int = 12
    closing: Literal["fixed", "learned"] = "fixed"
    temperature: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        require_in("[0, inf]", max_tokens=self.max_tokens)
        require_choice("closing", self.closing, ("fixed", "learned"))
        if not self.temperature > 0:
            raise InputError(
                f"temperature = {self.temperature} should be above 0; set greedy = true to take "
                "the likeliest tokens"
            )


def restricted_logits(logits: Tensor, tags: Tags, config: ThoughtConfig) -> Tensor:
    """Logits (..., V) of the distribution that thought tokens are drawn from, in float32.

    Divided by the temperature, -inf for the ids that a thought may not contain. Sampling and every
    later scoring of a thought go through here, so that their ratio is exact.
    """
    tempered = logits.float() if config.temperature == 1 else logits.float() / config.temperature
    return without_ids(tempered, tags.banned(close=config.closing == "fixed"))


def without_ids(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    """``logits`` (..., V) with -inf for ``ids``."""
    return logits.index_fill(-1, _ids(ids, logits.device), -torch.inf)


@functools.lru_cache(maxsize=64)
def _ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device once, not once a token. Made outside of any inference mode."""
    with torch.inference_mode(False):
        return torch.tensor(ids, dtype=torch.int64, device=device)


def draw(logits: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (M,) drawn from ``logits`` (M, V), and their log-probabilities in nats.

    Args:
        logits: float32, -inf for what cannot be drawn.
        uniform: (M,) in [0, 1), where the cumulative distribution is inverted; None takes the
            likeliest tokens.
    """
    return draw_each(logits, torch.arange(len(logits), device=logits.device), uniform)


def draw_each(logits: Tensor, which: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `draw`, (M,) tokens from the D distributions ``logits`` (D, V) that they share.

    Args:
        which: (M,) int64, the distribution that each token is drawn from; any order, each of the D
            at least once.
    """
    log_probs = logits.log_softmax(dim=-1)
    if uniform is None:
        written = log_probs.argmax(dim=-1)[which]
    else:
        cumulative = log_probs.exp().cumsum(dim=-1)
        total = cumulative[:, -1:]
        # One distribution's draws stand side by side, so that it is not copied for each.
        column, width = numbered_within(which, len(logits))
        table = uniform.new_zeros(len(logits), width)
        table[which, column] = uniform
        # Below the total, whatever rounding does: the first entry above is never an impossible id.
        wanted = (table * total).minimum(total.nextafter(torch.zeros_like(total)))
        written = torch.searchsorted(cumulative, wanted, right=True)[which, column]
    return written, log_probs[which, written]


def numbered_within(groups: Tensor, count: int) -> tuple[Tensor, int]:
    """Number (N,) of each element among those of its group, and the most that a group has.

    Args:
        groups: (N,) int64 in [0, count).
    """
    order = groups.argsort(stable=True)
    sizes = groups.bincount(minlength=count)
    starts = sizes.cumsum(0) - sizes
    numbers = torch.empty_like(groups)
    numbers[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return numbers, int(sizes.max())


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of distributions (..., V) given by log-probabilities; shape (...)."""
    finite = torch.where(log_probs > -torch.inf, log_probs, 0.0)
    return -(log_probs.exp() * finite).sum(dim=-1)
