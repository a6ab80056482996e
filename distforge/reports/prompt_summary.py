"""``summary.json`` of a prompt-baking run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import computed_field

from distforge.reports.summary import Summary
from distforge.typed_json import Count, Flag, Fraction, Number


@dataclass(frozen=True)
class Condition:
    """Greedy answers to ``questions`` held-out questions; fractions in [0, 1].

    accuracy: NaN where no right answer is known. adherence: share that follows the prompt; NaN
    where that cannot be told.
    """

    accuracy: Fraction
    adherence: Fraction
    questions: Count


@dataclass(frozen=True)
class AnswerMark:
    """One answer: whether it follows the prompt and is right; None where that cannot be told."""

    text: str
    follows: bool | None
    correct: bool | None


@dataclass(frozen=True)
class AnswerRow:
    """A question, and the answers to it by condition; a line of ``answers.jsonl``.

    told_by: how it was told whether an answer follows the prompt, for a reader.
    """

    prompt: str
    told_by: str
    question: str
    answers: dict[str, AnswerMark]


@dataclass(frozen=True)
class BakeReport:
    """One baked prompt against its champion.

    kl_before, kl_after: KL(prompted champion ‖ model without the prompt), nats a held-out token.
    conditions: champion without and with the prompt, baked model without and with it.
    forgetting: for each other strategy, what is left of the skill: champion and baked model, each
        with that strategy's own prompt.
    seconds: of the bake, responses and training; measuring is not in it.
    """

    prompt: str
    strategy: str
    kl_before: Number
    kl_after: Number
    conditions: dict[str, Condition]
    forgetting: dict[str, tuple[Condition, Condition]]
    steps: Count
    stopped_early: Flag
    strength: Number
    seconds: Number

    @computed_field  # type: ignore[prop-decorator]
    @property
    def kl_fall(self) -> float:
        """How many times smaller the KL has become; infinite where it is zero."""
        return self.kl_before / self.kl_after if self.kl_after > 0 else math.inf


@dataclass(frozen=True)
class ForgettingMatrix:
    """What is left of every prompt after each bake of a sequence.

    Row 0 is the champion, row i the model after bake i; column j is prompt j, asked for without
    it. ``kl`` is KL(prompted champion ‖ this model), accuracy and adherence fractions.
    """

    prompts: tuple[str, ...]
    kl: tuple[tuple[Number, ...], ...]
    accuracy: tuple[tuple[Fraction, ...], ...]
    adherence: tuple[tuple[Fraction, ...], ...]

    def forgotten(self, prompt: int) -> float:
        """Accuracy that prompt ``prompt`` lost between its own bake and the end."""
        return self.accuracy[prompt + 1][prompt] - self.accuracy[-1][prompt]


@dataclass(frozen=True)
class AdherenceByStrength:
    """Adherence of one bake by strength.

    strengths: ascending, from 0 to 1; adherence: at each, a fraction in [0, 1]; questions: asked.
    """

    strengths: tuple[Number, ...]
    adherence: tuple[Fraction, ...]
    questions: Count


@dataclass(frozen=True)
class Drift:
    """Rounds of a pursuit.

    drift: KL(prompted champion ‖ prompted model of this round), nats a token, by round.
    held_back: whether a last round went beyond ``max_drift`` and was dropped.
    """

    drift: tuple[Number, ...]
    held_back: Flag


class PromptSummary(Summary):
    """What a prompt-baking run reached; ``reports`` hold a prompt each, fractions in [0, 1].

    Only where the run did so: ``adapter`` (merged, not baked), ``forgetting`` (of a sequence),
    ``pursuit`` (of rounds), ``grades`` (strength counted in answers).
    """

    remedy: ClassVar[str] = "bake the prompt again, which writes it"

    mode: Literal["prompt"]
    reports: tuple[BakeReport, ...]
    adapter: str | None = None
    forgetting: ForgettingMatrix | None = None
    pursuit: Drift | None = None
    grades: AdherenceByStrength | None = None
    model_dir: str
    registry_version: str
    champion: str
    champion_sha256: str
    config_sha256: str
    step: Literal[1] = 1

    @property
    def followed(self) -> bool:
        """Whether every prompt's KL came down."""
        return all(report.kl_after < report.kl_before for report in self.reports)
