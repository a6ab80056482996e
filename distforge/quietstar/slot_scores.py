"""What the loss needs to know of every labelled slot, without logits of all of them at once.

Where the vocabulary is large, logits of a step would take more memory than all else: they are made
from hidden states in chunks, and made again in the backward pass, so that (slots × vocabulary) is
never held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distforge.quietstar.objective import exact_kl, k1_kl
from distforge.thinking.model import SlotOutput
from distforge.thinking.sampling import entropy
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, restricted_logits

# From rows that a model gave, states or logits, to logits.
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SlotScores:
    """Of T thought tokens and A targets, in the order of their slots, in nats.

    own: (T,), log-probability of the token that was written. kl: (T,), from the reference, exact or
    its estimate k1. spread: (T,), the policy's entropy. nll: (A,), of the target. missed: (A,)
    float32, 1 where it is not the likeliest.
    """

    own: Tensor
    kl: Tensor
    spread: Tensor
    nll: Tensor
    missed: Tensor


@dataclass(frozen=True)
class SlotReader:
    """Scores slots.

    Args:
        tags, thought: how the thoughts were written.
        exact: whether the divergence is summed over the vocabulary.
        pulls: whether the entropy is differentiated; else it is only told, which costs less.
        rows: slots whose logits are held at once.
    """

    tags: Tags
    thought: ThoughtConfig
    exact: bool
    pulls: bool
    rows: int

    def scores(
        self,
        policy: SlotOutput,
        reference: SlotOutput,
        labels: Tensor,
        heads: tuple[Head, Head] | None,
    ) -> SlotScores:
        """Of what both models predict at the S labelled slots, ``labels`` (S,).

        Args:
            heads: of the two, where they gave states; None where they gave logits, whole.
        """
        assert policy.targets is not None
        assert policy.weight is not None
        if heads is None:
            assert policy.logits is not None
            assert reference.logits is not None
            given = policy.logits, policy.base_logits, policy.weight, reference.logits
            return SlotScores(*self._score((_as_it_is, _as_it_is), *given, labels, policy.targets))
        assert policy.states is not None
        assert reference.states is not None
        targets = [0, *policy.targets.cumsum(0).tolist()]
        parts = []
        for start in range(0, len(labels), self.rows):
            end = min(start + self.rows, len(labels))
            told = slice(targets[start], targets[end])
            parts.append(
                checkpoint(
                    self._score,
                    heads,
                    policy.states[start:end],
                    None if policy.base_states is None else policy.base_states[told],
                    policy.weight[told],
                    reference.states[start:end],
                    labels[start:end],
                    policy.targets[start:end],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        return SlotScores(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _score(
        self,
        heads: tuple[Head, Head],
        states: Tensor,
        base: Tensor | None,
        weight: Tensor,
        kept: Tensor,
        labels: Tensor,
        after: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields of `SlotScores`; ``after`` says which of the slots are targets."""
        head, kept_head = heads
        logits = head(states)
        log_probs = self._restricted(logits, ~after)
        with torch.no_grad():
            reference = self._restricted(kept_head(kept), ~after)
        written = labels[~after][:, None]
        own, expected = (part.gather(-1, written)[:, 0] for part in (log_probs, reference))
        kl = exact_kl(log_probs, reference) if self.exact else k1_kl(own.detach(), expected)
        mixed = SlotOutput(
            logits=logits,
            base_logits=None if base is None else head(base),
            weight=weight,
            targets=after,
        )
        answers = mixed.mixed_logits()[after]
        nll = nn.functional.cross_entropy(answers, labels[after], reduction="none")
        missed = (answers.detach().argmax(dim=-1) != labels[after]).float()
        spread = entropy(log_probs if self.pulls else log_probs.detach())
        return own, kl, spread, nll, missed

    def _restricted(self, logits: Tensor, chosen: Tensor) -> Tensor:
        rows = logits if bool(chosen.all()) else logits[chosen]
        return restricted_logits(rows, self.tags, self.thought).log_softmax(dim=-1)


def _as_it_is(logits: Tensor) -> Tensor:
    return logits
