"""Judging answers and traces: nothing is trusted that can be recomputed."""

from __future__ import annotations

import re

from distforge.data.schema import Example
from distforge.data.tasks import TASKS, check_arithmetic, same_answer
from distforge.data.tasks.base import require

EXACT = "exact"


def is_correct(example: Example, answer: str) -> bool:
    """Whether ``answer`` answers the question: recomputed by the task's checker where there is one.

    Numbers and fractions are compared exactly (6/14 equals 3/7), other answers as text.
    """
    task = TASKS.get(example.verifier)
    truth = example.answer if task is None else task.solve(example.question)
    return same_answer(answer, truth)


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
