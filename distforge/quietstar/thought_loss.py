"""The loss of reinforcement learning on packed thoughts, as the training engine wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from distforge.baking.prompt.delta import is_adapter
from distforge.baking.prompt.distillation import adapters_off
from distforge.data.dataset import IGNORE_INDEX
from distforge.quietstar.config import ObjectiveConfig
from distforge.quietstar.objective import (
    divergence_to_go,
    effective_sample_fraction,
    importance,
    policy_loss,
)
from distforge.quietstar.slot_scores import SlotReader, SlotScores
from distforge.thinking.language_model import is_head_last, language_model
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
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
        reference: the model that the policy is kept near, frozen, whole on this process; or the
            policy itself, where what is trained is an adapter: with it off, that is it.
        kl_coefficient: >= 0.
        chunk_elements: most logits held at once in one tensor; about ten of that size are the peak,
            whatever the vocabulary. Of a model that changes its logits behind the head, and under
            ZeRO 3, all are.

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
        chunk_elements: int = 1 << 22,
    ) -> None:
        self._config = config
        self._reference = reference
        if not any(map(is_adapter, dict(reference.named_parameters()))):
            reference.eval().requires_grad_(False)
        # Asked while it is whole.
        lm = language_model(reference)
        vocabulary = lm.get_input_embeddings().weight.shape[0]
        self._reader = SlotReader(
            tags,
            thought,
            exact=config.kl_estimator == "exact",
            pulls=config.entropy_bonus > 0,
            rows=max(1, chunk_elements // vocabulary),
        )
        self._makes_chunks = is_head_last(lm)
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
        scores, after = self._scores(model, packed)
        loss = self._policy(scores, batch)
        copies, told = batch[COPIES], packed["thought"][packed["labels"] != IGNORE_INDEX][after]
        nll = (scores.nll * copies[told]).sum()
        missed = torch.zeros_like(copies, dtype=scores.missed.dtype)
        missed = missed.index_add(0, told, scores.missed)
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

    def _scores(self, model: nn.Module, packed: Mapping[str, Tensor]) -> tuple[SlotScores, Tensor]:
        """Of the labelled slots, and which of them are targets."""
        labels = packed["labels"][packed["labels"] != IGNORE_INDEX]
        head, large = _head(model), len(labels) > self._reader.rows
        # ZeRO 3 has the head's weight whole in the model's own forward pass alone.
        chunks = large and self._makes_chunks and not hasattr(next(head.parameters()), "ds_id")
        # First: what is computed with an adapter off comes before all that is differentiated.
        with torch.no_grad(), adapters_off(self._reference):
            kept = self._reference(**packed, states_only=chunks)
        output = model(**packed, states_only=chunks)
        heads = (head, _head(self._reference)) if chunks else None
        return self._reader.scores(output, kept, labels, heads), output.targets

    def _policy(self, scores: SlotScores, batch: Mapping[str, Tensor]) -> Tensor:
        """All of the loss that thought tokens bear."""
        config, slot, thought = self._config, batch[SLOT], batch[OWNER]
        exact = config.kl_estimator == "exact"
        current, kl, spread = scores.own[slot], scores.kl[slot], scores.spread[slot]
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


def _head(model: nn.Module) -> nn.Module:
    """Of the model inside an engine, or of the model itself."""
    head: nn.Module = language_model(getattr(model, "module", model)).get_output_embeddings()
    return head


def _without_dropout(model: nn.Module) -> None:
    """The policy that is learned is the one that wrote the thoughts, which knew no dropout.

    Layers whose activations are computed anew in the backward pass do so only in training mode.
    """
    for module in model.modules():
        module.training = isinstance(module, GradientCheckpointingLayer)
