"""ARC (Clark et al. 2018): questions of science with three to five choices, by likelihood.

As lm-evaluation-harness does: ``Question: …\\nAnswer:``, and the choice whose text is likeliest
after a space ("acc"), or likeliest for its number of characters ("acc_norm").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distforge.errors import InputError
from distforge.evaluation.benchmarks.answering import Answerer, Judged, solved, with_examples
from distforge.evaluation.benchmarks.rows import Row, read_splits


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices, and which of them is right."""

    question: str
    choices: tuple[str, ...]
    answer: int


class ARC:
    """The questions of a file or directory; see `BenchmarksConfig`.

    Raises:
        InputError: files that are no ARC.
    """

    name = "arc"
    headline = "acc_norm"

    def __init__(self, path: str, limit: int, shots: int) -> None:
        asked, examples = read_splits(path, limit, shots)
        self.questions = [_question(row) for row in asked]
        worked = [_question(row) for row in examples]
        self._examples = [solved(q.question, q.choices[q.answer]) for q in worked]

    def judge(self, answerer: Answerer, mine: Sequence[int]) -> list[Judged]:
        """Ask the chosen questions."""
        questions = [self.questions[index] for index in mine]
        answers = [[f" {choice}" for choice in q.choices] for q in questions]
        asked = [
            with_examples(answerer, q.question, self._examples, texts)
            for q, texts in zip(questions, answers, strict=True)
        ]
        fitting = [index for index, text in enumerate(asked) if text is not None]
        texts = [text for text in asked if text is not None]
        likelihoods = answerer.log_likelihoods(texts, [answers[index] for index in fitting])
        found = [Judged(q.question, q.choices[q.answer], None) for q in questions]
        for index, text, nats in zip(fitting, texts, likelihoods, strict=True):
            found[index] = judge(questions[index], text, nats)
        return found


def judge(question: ChoiceQuestion, asked: str, nats: Sequence[float]) -> Judged:
    """The choice that is the likeliest, as it is and for its length."""
    each = [value / len(text) for value, text in zip(nats, question.choices, strict=True)]
    whole = max(range(len(nats)), key=nats.__getitem__)
    normed = max(range(len(each)), key=each.__getitem__)
    told = zip(question.choices, nats, each, strict=True)
    return Judged(
        question.question,
        question.choices[question.answer],
        asked,
        question.choices[whole],
        question.choices[normed],
        {"acc": whole == question.answer, "acc_norm": normed == question.answer},
        "nats, and a character: "
        + ", ".join(f"{text!r} {all_of_it:.2f}, {one:.3f}" for text, all_of_it, one in told),
    )


def _question(row: Row) -> ChoiceQuestion:
    try:
        stem, texts, labels = _laid_out(row.values)
        answer = labels.index(str(row.values["answerKey"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{row.where} is no row of ARC ({type(error).__name__}: {error}); expected a question, "
            "choices with texts and labels, and an 'answerKey' among the labels"
        ) from error
    if len(texts) != len(labels) or not all(texts):
        raise InputError(f"{row.where} has {len(labels)} labels for the choices {texts}")
    return ChoiceQuestion(stem, tuple(texts), answer)


def _laid_out(values: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """Question, texts and labels, of either layout: the hub's columns or the authors' objects."""
    question = values["question"]
    if isinstance(question, str):
        choices = values["choices"]
        return question, list(map(str, choices["text"])), list(map(str, choices["label"]))
    choices = question["choices"]
    return (
        str(question["stem"]),
        [str(choice["text"]) for choice in choices],
        [str(choice["label"]) for choice in choices],
    )
