"""How far a student's next-token distributions are from its teacher's, in nats.

The divergence is the generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2023, arXiv
2306.13649, eq. 1) with its two limits: forward KL, which prompt baking minimises (arXiv 2409.13697,
eq. 2), and reverse KL. Logits are made from states in chunks and made again in the backward pass,
so that (tokens × vocabulary) is never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# From states (N, d) to logits (N, V).
Head = Callable[[Tensor], Tensor]


class Teacher(Protocol):
    """Where a teacher's distributions come from, row by row; all without gradient."""

    def rows(self, part: slice) -> tuple[Tensor | None, Tensor]:
        """Ids (n, k) of the outcomes told apart, and log-probabilities.

        These are (n, V) where the ids are None, or (n, k + 1), the last outcome being all the rest
        (the tail bucket).
        """
        ...


@dataclass(frozen=True)
class StateTeacher:
    """A teacher by its states (N, d) and head, exact or reduced to its ``top_k`` (0: exact)."""

    states: Tensor
    head: Head
    top_k: int = 0

    @torch.no_grad()
    def rows(self, part: slice) -> tuple[Tensor | None, Tensor]:
        """See `Teacher`."""
        log_probs = torch.log_softmax(self.head(self.states[part]), dim=-1)
        if not self.top_k:
            return None, log_probs
        ids = top_ids(log_probs, self.top_k)
        return ids, bucket(log_probs, ids)


@dataclass(frozen=True)
class TopKTeacher:
    """A teacher that was written down: ids (N, k) and log-probabilities (N, k + 1), tail last."""

    ids: Tensor
    log_probs: Tensor

    def rows(self, part: slice) -> tuple[Tensor | None, Tensor]:
        """See `Teacher`."""
        return self.ids[part], self.log_probs[part]


def divergence(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """Divergence of each row, (N,), from log-probabilities (N, K) over the same outcomes.

    With P the teacher, Q the student and M = βP + (1−β)Q: β = 0 is KL(P‖Q), β = 1 is KL(Q‖P), and
    0 < β < 1 is β KL(P‖M) + (1−β) KL(Q‖M), at most log 2.
    """
    if beta == 0.0:
        return _kl(teacher, student)
    if beta == 1.0:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def top_ids(log_probs: Tensor, top_k: int) -> Tensor:
    """Ids (N, k) of the likeliest outcomes; one at least is left for the tail bucket."""
    return log_probs.topk(min(top_k, log_probs.shape[-1] - 1), dim=-1).indices


def bucket(log_probs: Tensor, ids: Tensor) -> Tensor:
    """(N, k + 1): the log-probabilities of ``ids`` (N, k), then that of all other outcomes as one.

    Merging outcomes never raises an f-divergence (data-processing inequality), so a divergence of
    buckets is a lower bound of the exact one. The tail is summed itself rather than taken as
    1 − Σ, which would cancel where the rest is small.
    """
    tail = log_probs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), tail], dim=-1)


def sum_divergence(
    states: Tensor,
    head: Head,
    teacher: Teacher,
    token_ids: Tensor,
    *,
    beta: float,
    chunk_elements: int,
) -> tuple[Tensor, Tensor]:
    """Divergence summed over rows, and how many rows' argmax is the token; both scalars.

    Args:
        states: the student's, (N, d).
        head: the student's, to float32 logits; its parameters get their gradients too.
        teacher: of the same N rows.
        token_ids: (N,), the token that each row predicts.
        beta: see `divergence`, in [0, 1].
        chunk_elements: most logits held at once in one tensor; a handful of tensors of that size
            is the peak, whatever the vocabulary.
    """

    def chunk(rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(head(rows), dim=-1)
        ids, wanted = teacher.rows(part)
        hits = (log_probs.detach().argmax(dim=-1) == token_ids[part]).sum()
        compared = log_probs if ids is None else bucket(log_probs, ids)
        return divergence(wanted, compared, beta).sum(), hits

    total, hits = states.sum() * 0.0, token_ids.new_zeros(())
    step = rows_per_chunk(states, head, chunk_elements)
    alone = step >= len(states)
    for start in range(0, len(states), step):
        part = slice(start, start + step)
        if alone or not torch.is_grad_enabled():
            loss, correct = chunk(states[part], part)
        else:
            loss, correct = checkpoint(
                chunk, states[part], part, use_reentrant=False, preserve_rng_state=False
            )
        total, hits = total + loss, hits + correct
    return total, hits


def rows_per_chunk(states: Tensor, head: Head, chunk_elements: int) -> int:
    """How many rows' logits stay within ``chunk_elements``, at least one."""
    with torch.no_grad():
        vocabulary = head(states[:1]).shape[-1] if len(states) else 1
    return max(1, chunk_elements // vocabulary)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)
