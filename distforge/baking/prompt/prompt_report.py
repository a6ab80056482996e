"""What a baked prompt is worth: four conditions, forgetting, seconds; the forgetting matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from distforge.evaluation.adherence import Layout, layout
from distforge.evaluation.scoring import Answered

REPORT_FILE = "report.json"
CONDITIONS = ("unprompted", "prompted", "baked", "baked_prompted")


@dataclass(frozen=True)
class Condition:
    """Greedy answers to ``questions`` held-out questions; fractions in [0, 1].

    ``adherence``: share laid out as wanted, see `distforge.evaluation.adherence`. NaN where no
    question was asked.
    """

    accuracy: float
    adherence: float
    questions: int


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
    kl_before: float
    kl_after: float
    conditions: Mapping[str, Condition]
    forgetting: Mapping[str, tuple[Condition, Condition]]
    steps: int
    stopped_early: bool
    strength: float
    seconds: float

    @property
    def kl_fall(self) -> float:
        """How many times smaller the KL has become; infinite where it is zero."""
        return self.kl_before / self.kl_after if self.kl_after > 0 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**asdict(self), "kl_fall": self.kl_fall}


@dataclass(frozen=True)
class ForgettingMatrix:
    """What is left of every prompt after each bake of a sequence.

    Row 0 is the champion, row i the model after bake i; column j is prompt j, asked for without
    it. ``kl`` is KL(prompted champion ‖ this model), accuracy and adherence fractions.
    """

    prompts: tuple[str, ...]
    kl: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    adherence: tuple[tuple[float, ...], ...]

    def forgotten(self, prompt: int) -> float:
        """Accuracy that prompt ``prompt`` lost between its own bake and the end."""
        return self.accuracy[prompt + 1][prompt] - self.accuracy[-1][prompt]


def score(answered: Sequence[Answered], wanted: Sequence[Layout]) -> Condition:
    """Accuracy and adherence of judged answers, whose layouts should be ``wanted``."""
    count = len(answered)
    if not count:
        return Condition(math.nan, math.nan, 0)
    adhering = sum(layout(a.text) == form for a, form in zip(answered, wanted, strict=True))
    return Condition(sum(a.correct for a in answered) / count, adhering / count, count)


def report_table(reports: Sequence[BakeReport]) -> Table:
    """Every prompt with its KL and its four conditions (accuracy / adherence)."""
    table = Table("prompt", "KL before", "KL after", *CONDITIONS, "seconds")
    for report in reports:
        table.add_row(
            report.strategy or report.prompt[:40],
            f"{report.kl_before:.4f}",
            f"{report.kl_after:.4f}",
            *(_pair(report.conditions[name]) for name in CONDITIONS),
            f"{report.seconds:.0f}",
        )
    return table


def forgetting_table(matrix: ForgettingMatrix) -> Table:
    """The forgetting matrix, accuracy / adherence / KL a cell."""
    table = Table("after baking", *(prompt[:32] for prompt in matrix.prompts))
    names = ("nothing", *(prompt[:32] for prompt in matrix.prompts))
    for name, *rows in zip(names, matrix.accuracy, matrix.adherence, matrix.kl, strict=True):
        cells = (f"{a:.1%} / {f:.1%} / {k:.4f}" for a, f, k in zip(*rows, strict=True))
        table.add_row(name, *cells)
    return table


def _pair(condition: Condition) -> str:
    return f"{condition.accuracy:.1%} / {condition.adherence:.1%}"
