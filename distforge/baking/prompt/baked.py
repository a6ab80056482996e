"""What `PromptBaker` hands back: a baked prompt, a pursuit, a sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from distforge.baking.prompt.delta import Delta, check_strength
from distforge.baking.prompt.prompt_training import BakeOutcome
from distforge.reports.prompt_summary import ForgettingMatrix


@dataclass(frozen=True)
class BakedPrompt:
    """A prompt and the change of weights that replaces it.

    ``base`` is the model it was baked into, unchanged. ``prompts`` maps each baked prompt to its
    strategy (empty: none). ``strength`` in [0, 1.5] is how much of the change `model` has;
    ``seconds`` count responses and training, since the last resume.
    """

    prompts: Mapping[str, str]
    base: PreTrainedModel
    delta: Delta
    outcome: BakeOutcome
    seconds: float
    strength: float = 1.0

    @property
    def prompt(self) -> str:
        """The prompt; the first, where several were baked together."""
        return next(iter(self.prompts))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The baked model: a copy of the base with the change merged in."""
        return self.delta.merge(self.base, self.strength)

    def at(self, strength: float) -> BakedPrompt:
        """The same bake at another strength, without training.

        Raises:
            InputError: a strength outside [0, 1.5].
        """
        check_strength(strength)
        return dataclasses.replace(self, strength=strength)

    def save(self, directory: Path) -> None:
        """Write the change alone; `PromptBaker.load` reads it. The directory must not exist."""
        record = {
            "prompts": dict(self.prompts),
            "outcome": dataclasses.asdict(self.outcome),
            "seconds": self.seconds,
        }
        self.delta.save(directory, record)

    @classmethod
    def from_record(
        cls, base: PreTrainedModel, delta: Delta, record: Mapping[str, Any]
    ) -> BakedPrompt:
        """What `save` wrote, from what `read_delta` returned."""
        told = record["outcome"]
        curve = tuple((step, value) for step, value in told["curve"])
        outcome = BakeOutcome(curve, told["steps"], told["stopped_early"])
        return cls(record["prompts"], base, delta, outcome, record["seconds"])


@dataclass(frozen=True)
class Pursuit:
    """Rounds of baking the same prompt, each teacher being the last baked model with the prompt.

    ``drift``: KL(prompted champion ‖ prompted model of this round), nats a token, by round;
    ``held_back``: whether a last round went beyond ``max_drift`` and was dropped.
    """

    rounds: tuple[BakedPrompt, ...]
    drift: tuple[float, ...]
    held_back: bool

    @property
    def model(self) -> PreTrainedModel:
        """The model of the last round that was kept."""
        return self.rounds[-1].model


@dataclass(frozen=True)
class BakedSequence:
    """Prompts baked one after another, and what each bake did to those before."""

    bakes: tuple[BakedPrompt, ...]
    forgetting: ForgettingMatrix

    @property
    def model(self) -> PreTrainedModel:
        """The model after the last bake."""
        return self.bakes[-1].model
