"""The loss of reinforcement learning on packed thoughts, as the training engine wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.config import ObjectiveConfig
from distforge.quietstar.objective import (
    divergence_to_go,
    effective_sample_fraction,
    exact_kl,
    importance,
    k1_kl,
    policy_loss,
)
from distforge.thinking.model import SlotOutput
from distforge.thinking.packing import THOUGHT
from distforge.thinking.sampling import entropy
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, restricted_logits
from distforge.training.distributed import World

# Beside what `pack_thoughts` makes. Thoughts that are alike are packed once and count one by one:
# of each of their tokens the behaviour policy's log-probability, the advantage, the thought, and
# which of the packed thought tokens it is; of each thought, the place that it is at; of each packed
# thought, how many thoughts it is.
BEHAVIOUR, ADVANTAGES, OWNER, SLOT = "behaviour", "advantages", "owner", "slot"
GROUP, COPIES = "group", "copies"
_BESIDE = (BEHAVIOUR, ADVANTAGES, OWNER, SLOT, GROUP, COPIES)


@dataclass
class Totals:
    """Sums over the thoughts of one step, on this rank.

    ``weights`` and ``squares`` are of the tokens' importance weights, as the loss takes them;
    ``gap`` of the absolute log-ratios that they come from.
    """

    thoughts: float = 0.0
    tokens: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    answer_nll: float = 0.0
    weights: float = 0.0
    squares: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True)
class PolicyStatistics:
    """Of one step, over all ranks.

    kl: nats a thought token, from the reference. entropy: nats a thought token. answer_nll: nats a
    thought. ess: effective sample size of the thought tokens, a fraction in [0, 1]; 1 where none is
    stale. gap, max_gap: nats by which a token's log-probability here differs from that which the
    engine drew it with, mean and largest: of fresh thoughts that of two ways to compute the same.
    """

    kl: float
    entropy: float
    answer_nll: float
    ess: float
    gap: float
    max_gap: float


class ThoughtLoss:
    """A `Loss` over packed thoughts; its targets are thoughts, so it is a mean over thoughts.

    A thought costs: the policy gradient of its tokens (`policy_loss`), plus ``kl_coefficient``
    times its divergence from the reference, plus ``nll_weight`` times the cross-entropy of the
    target after it, less ``entropy_bonus`` times the entropy of its tokens.

    Args:
        config: see `ObjectiveConfig`.
        tags, thought: how the thoughts were written.
        reference: the model that the policy is kept near, frozen, whole on this process.
        kl_coefficient: >= 0.

    ``progress``, in [0, 1], is set by who trains: the entropy bonus falls with it.
    ``kl_coefficient`` may be set between steps.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        tags: Tags,
        thought: ThoughtConfig,
        reference: nn.Module,
        kl_coefficient: float,
    ) -> None:
        self._config = config
        self._tags = tags
        self._thought = thought
        self._reference = reference.eval().requires_grad_(False)
        self.kl_coefficient = kl_coefficient
        self._totals, self._max_gap = Totals(), 0.0
        self.progress = 0.0

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss summed over the batch's thoughts, and how many are followed by the very target.

        ``batch`` is what `pack_episodes` makes: ``behaviour``, ``advantages``, ``owner`` and
        ``slot`` are of shape (thought tokens,), ``group`` (thoughts,), ``copies`` (packed
        thoughts,).
        """
        _without_dropout(model)
        packed = {k: v for k, v in batch.items() if k not in _BESIDE}
        output: SlotOutput = model(**packed)
        slots = packed["labels"] != IGNORE_INDEX
        labels, inside = packed["labels"][slots], packed["kind"][slots] == THOUGHT
        thought, copies = packed["thought"][slots], batch[COPIES]
        assert output.logits is not None
        assert output.targets is not None
        after = output.targets
        loss = self._policy(output.logits[inside], packed, labels[inside], batch)
        answers, told = output.mixed_logits()[after], thought[after]
        each = nn.functional.cross_entropy(answers, labels[after], reduction="none")
        nll = (each * copies[told]).sum()
        wrong = (answers.detach().argmax(dim=-1) != labels[after]).float()
        missed = torch.zeros_like(copies, dtype=wrong.dtype).index_add(0, told, wrong)
        asked = torch.zeros_like(copies).index_fill(0, told, 1).bool()
        self._totals.answer_nll += float(nll.detach())
        self._totals.thoughts += int(copies.sum())
        return loss + self._config.nll_weight * nll, copies[asked & (missed == 0)].sum()

    def take_statistics(self, world: World) -> PolicyStatistics:
        """Those of the micro-batches since the last call; collective."""
        totals = self._over_ranks(world)
        max_gap = torch.tensor(self._max_gap, device=world.device)
        world.all_reduce_max(max_gap)
        self._totals, self._max_gap = Totals(), 0.0
        tokens, thoughts = max(totals.tokens, 1.0), max(totals.thoughts, 1.0)
        return PolicyStatistics(
            kl=totals.kl / tokens,
            entropy=totals.entropy / tokens,
            answer_nll=totals.answer_nll / thoughts,
            ess=effective_sample_fraction(totals.weights, totals.squares, tokens),
            gap=totals.gap / tokens,
            max_gap=float(max_gap),
        )

    def veto(self, world: World) -> str:
        """Why the step of the micro-batches so far should not be taken, or ""; collective."""
        totals = self._over_ranks(world)
        ess = effective_sample_fraction(totals.weights, totals.squares, max(totals.tokens, 1.0))
        if ess >= self._config.min_ess:
            return ""
        return (
            f"the effective sample size of its stale tokens is {ess:.2f} of their number, below "
            f"min_ess ({self._config.min_ess})"
        )

    def _policy(
        self,
        logits: Tensor,
        packed: Mapping[str, Tensor],
        written: Tensor,
        batch: Mapping[str, Tensor],
    ) -> Tensor:
        """All of the loss that thought tokens bear."""
        config, slot, thought = self._config, batch[SLOT], batch[OWNER]
        log_probs = restricted_logits(logits, self._tags, self._thought).log_softmax(dim=-1)
        own = log_probs.gather(-1, written[:, None])[:, 0]
        current = own[slot]
        with torch.no_grad():
            kept = self._reference(**packed).logits[_kinds(packed) == THOUGHT]
            reference = restricted_logits(kept, self._tags, self._thought).log_softmax(dim=-1)
        exact = config.kl_estimator == "exact"
        expected = reference.gather(-1, written[:, None])[:, 0]
        each = exact_kl(log_probs, reference) if exact else k1_kl(own.detach(), expected)
        kl, spread = each[slot], entropy(log_probs)[slot]
        # What a token leads to is its own doing: it comes off its reward.
        later = divergence_to_go(kl.detach(), thought, batch[GROUP], own=not exact)
        advantages = batch[ADVANTAGES] - self.kl_coefficient * later
        loss = policy_loss(
            current, batch[BEHAVIOUR], advantages, max_importance=config.max_importance
        ).sum()
        if exact:
            loss = loss + self.kl_coefficient * kl.sum()
        loss = loss - config.entropy_bonus * (1 - self.progress) * spread.sum()
        self._count(current.detach(), batch[BEHAVIOUR], kl, spread)
        return loss

    def _count(self, current: Tensor, behaviour: Tensor, kl: Tensor, spread: Tensor) -> None:
        weights = importance(current, behaviour, self._config.max_importance).double()
        gaps = (current - behaviour).abs()
        totals = self._totals
        totals.tokens += len(current)
        totals.kl += float(kl.detach().sum())
        totals.entropy += float(spread.detach().sum())
        totals.weights += float(weights.sum())
        totals.squares += float(weights.pow(2).sum())
        totals.gap += float(gaps.sum())
        self._max_gap = max(self._max_gap, float(gaps.max()) if len(gaps) else 0.0)

    def _over_ranks(self, world: World) -> Totals:
        names = [field.name for field in fields(Totals)]
        summed = world.all_reduce_sum([getattr(self._totals, name) for name in names])
        return Totals(**dict(zip(names, summed, strict=True)))


def _kinds(packed: Mapping[str, Tensor]) -> Tensor:
    """Of the labelled slots."""
    return packed["kind"][packed["labels"] != IGNORE_INDEX]


def _without_dropout(model: nn.Module) -> None:
    """The policy that is learned is the one that wrote the thoughts, which knew no dropout.

    Layers whose activations are computed anew in the backward pass do so only in training mode.
    """
    for module in model.modules():
        module.training = isinstance(module, GradientCheckpointingLayer)
