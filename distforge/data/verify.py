"""Judging answers and traces: nothing is trusted that can be recomputed."""

from __future__ import annotations

import re

from distforge.data.answers import Comparison, compare
from distforge.data.schema import Example
from distforge.data.tasks import TASKS, check_arithmetic
from distforge.data.tasks.base import require

EXACT = "exact"


def judge_answer(example: Example, answer: str) -> Comparison:
    """Whether ``answer`` answers the question, and how that was found out.

    It is compared with what the task's checker computes from the question, where there is one, else
    with the row's answer: see `distforge.data.answers.compare`.
    """
    task = TASKS.get(example.verifier)
    truth = example.answer if task is None else task.solve(example.question)
    return compare(answer, truth)


def is_correct(example: Example, answer: str) -> bool:
    """Whether ``answer`` answers the question; see `judge_answer`."""
    return judge_answer(example, answer).same


def verify_trace(example: Example) -> tuple[str, ...]:
    """Check one example wholly; return the names of the checks that passed.

    The answer is recomputed from the question, every equation is checked in exact arithmetic, and
    the strategy's own rules are applied. Raises `TraceError` at the first failure. Data from
    outside (verifier ``"exact"``) only has its tags checked.
    """
    task = TASKS.get(example.verifier)
    if task is None:
        opened = example.reasoning.count("<think>")
        require(opened == example.reasoning.count("</think>"), "a <think> is not closed")
        return ("tags",)
    enclosed = re.fullmatch(r"(?s)<think>((?:(?!</?think>).)*)</think>", example.reasoning)
    require(enclosed is not None, "the reasoning is not enclosed in one <think> … </think>")
    assert enclosed is not None
    require(is_correct(example, example.answer), f"{example.answer!r} is not the answer")
    check_arithmetic(enclosed[1])
    task.check_form(example.question, enclosed[1])
    return ("tags", "answer", "arithmetic", "form")
