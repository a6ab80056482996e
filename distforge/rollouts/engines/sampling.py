"""How an engine answers prompts, and the form that its answers have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How prompts are answered.

    group: answers to each prompt.
    max_tokens: of an answer.
    temperature: divides the logits.
    stop: the token that ends an answer, as its last.
    banned: tokens that are never written; the others share their probability.
    pad: what shorter answers are filled up with.
    """

    group: int
    max_tokens: int
    temperature: float
    stop: int
    banned: tuple[int, ...]
    pad: int

    def seed(self, of_request: int, number: int) -> int:
        """Of the request's answer ``number``: on no other answer does it depend."""
        return random.Random(f"{of_request}:answer:{number}").getrandbits(62)


@dataclass(frozen=True)
class Answered:
    """One answer: its tokens, and in nats what each was drawn with."""

    tokens: Sequence[int]
    log_probs: Sequence[float]


def as_thoughts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Answered], sampling: Sampling
) -> dict[str, Tensor]:
    """The answers to ``prompts``, ``group`` to each, in order, as `ThoughtEngine` gives thoughts:
    such an answer is a thought behind its prompt's last token, without a target."""
    count, lengths = len(answers), [len(answer.tokens) for answer in answers]
    tokens = torch.full((count, max([*lengths, 1])), sampling.pad, dtype=torch.int64)
    log_probs = torch.zeros(tokens.shape)
    for row, answer in enumerate(answers):
        tokens[row, : lengths[row]] = torch.tensor(answer.tokens, dtype=torch.int64)
        log_probs[row, : lengths[row]] = torch.tensor(answer.log_probs)
    # Of what the policy reads, a prompt's last token is the first.
    places = torch.tensor([len(prompt) - 2 for prompt in prompts])
    return {
        "rows": torch.arange(len(prompts)).repeat_interleave(sampling.group),
        "positions": places.repeat_interleave(sampling.group),
        "tokens": tokens,
        "lengths": torch.tensor(lengths),
        "closed": torch.tensor([list(a.tokens[-1:]) == [sampling.stop] for a in answers]),
        "log_probs": log_probs,
        "targets": torch.zeros(count, 0, dtype=torch.int64),
        "rewards": torch.zeros(count),
    }
