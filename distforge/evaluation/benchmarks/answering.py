"""What a model must be able to do to be asked a benchmark, and how a question is put to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distforge.data.text import completion_text
from distforge.rendering.plain import question_text


class Answerer(Protocol):
    """A model that answers, with thoughts or without.

    ``asked`` is always the text up to the end of the question's line; the answerer sees to
    ``Answer:`` itself, so that a thought can come before it.
    """

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        """Whether the context has room for it and for each of ``answers``; without any, for a
        written answer."""
        ...

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        """What the model writes after each, greedily, up to the first of ``stops``."""
        ...

    def log_likelihoods(
        self, asked: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Log-probability in nats of each of the answers to each, tokens summed; the texts begin
        with the space after ``Answer:``."""
        ...


@dataclass(frozen=True)
class Judged:
    """A question of a benchmark and what became of it.

    asked: all that the model read, solved examples included, up to where it answers; None where the
        context has no room for the question. written: what it wrote or chose. answer: what counts
        of that. right: by measure. why: in words.
    """

    question: str
    expected: str
    asked: str | None
    written: str = ""
    answer: str | None = None
    right: dict[str, bool] = field(default_factory=dict)
    why: str = "the context has no room for the question"

    def as_sample(self, benchmark: str, thoughts: str, headline: str) -> dict[str, Any]:
        """The row of ``samples.jsonl``; ``headline`` is the measure that its verdict is by."""
        return {
            "strategy": "",
            "benchmark": benchmark,
            "thoughts": thoughts,
            "question": self.question,
            "prompt": self.asked or "",
            "generated": self.written,
            "answer": self.answer,
            "expected": self.expected,
            "verdict": "right" if self.right.get(headline) else "wrong",
            "why": self.why,
            "measures": self.right,
        }


def solved(question: str, answer: str) -> str:
    """A solved example, with the blank line that ends it."""
    return f"{question_text(question)}{completion_text('', answer)}\n\n"


def with_examples(
    answerer: Answerer, question: str, examples: Sequence[str], answers: Sequence[str] = ()
) -> str | None:
    """The question after as many of the last ``examples`` as fit; None if it alone does not."""
    for first in range(len(examples) + 1):
        asked = "".join(examples[first:]) + question_text(question)
        if answerer.fits(asked, answers):
            return asked
    return None


def first_part(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of ``stops``."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=None)]
