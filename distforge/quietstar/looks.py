"""The looks that a run takes at its own thoughts: some on the way, and the last at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from distforge.quietstar.config import LearnerConfig
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.theater import Verdict, evaluate_theater, examinee
from distforge.theater.spending import AlphaSpending
from distforge.thinking.items import ThoughtItem
from distforge.training.distributed import World


class Looks:
    """Judges the model of one run, again and again, with one alpha for all looks together.

    On the way it looks at the probed items, beside the controls that need no training: a PASS there
    means that nothing speaks against the thoughts so far. The last look is at items that picked
    nothing, beside the control of equal compute.

    Args:
        reference: the baked model, under which fluency is measured.
        config: how the model thinks, and what the verdict asks.
        probed, heldout: items for the looks on the way, and for the last, with their places.
    """

    def __init__(
        self,
        reference: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: LearnerConfig,
        probed: Sequence[ThoughtItem],
        heldout: Sequence[ThoughtItem],
        world: World,
        log: RunLogger,
    ) -> None:
        self._reference, self._tokenizer, self._config = reference, tokenizer, config
        self._probed, self._heldout = probed, heldout
        self._world, self._log = world, log
        self._spending = AlphaSpending(config.theater.alpha)

    def __call__(self, model: nn.Module, step: int, total: int) -> Verdict:
        """A look after ``step`` of ``total`` steps, logged; collective, ``model`` is whole."""
        alpha = self._spending.spend(step / total)
        # Another sample of thoughts at each look.
        theater = replace(self._config.theater, seed=self._config.theater.seed + step)
        who = examinee(model, self._tokenizer, self._config.thought, reference=self._reference)
        verdict = evaluate_theater(
            who, self._probed, theater, self._world, alpha, needs_direct=False
        )
        self._log.log(step, verdict_metrics(verdict))
        self._log.say(f"verdict after {step} of {total} steps: {verdict.outcome}")
        return verdict

    def last(self, model: nn.Module, direct: Mapping[str, nn.Module]) -> Verdict:
        """The verdict on the model that is shipped; collective.

        Args:
            direct: by name, controls of equal compute.
        """
        who = examinee(
            model, self._tokenizer, self._config.thought, reference=self._reference, direct=direct
        )
        alpha = self._spending.spend(1.0)
        return evaluate_theater(
            who, self._heldout, self._config.theater, self._world, alpha, self._log.say
        )

    def state_dict(self) -> dict[str, Any]:
        """What is spent of alpha; JSON."""
        return self._spending.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the object that `state_dict` was taken from."""
        self._spending.load_state_dict(state)


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """The three anti-theatre metrics, and their bounds, by full name."""
    measures = verdict.measures
    found = {
        names.RL["anti_theater_divergence"]: measures["divergence_edit"].estimate,
        names.RL["anti_theater_ablation"]: measures["ablation"].estimate,
        names.RL["anti_theater_correlation"]: measures["correlation"].estimate,
    }
    for name, measure in measures.items():
        low, high = names.RL_VERDICT_BOUNDS[name]
        found |= {low: measure.low, high: measure.high}
    return found
