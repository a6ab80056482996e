"""What a task is: a generator that knows the derivation, and a checker that does not trust it.

`Task.solve` reads nothing but the question's text and computes the answer by another road than
the generator; `check_example` adds the arithmetic of every equation in the trace, and the task's
own demands on its form.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, ClassVar

Params = tuple[Any, ...]

# From this difficulty on a trace grows no longer; beyond it numbers alone do.
LONGEST = 3

# "12+5=17": both operands and the result are plain non-negative numbers; '/' divides exactly.
EQUATION = re.compile(r"(?<![\d*+/-])(\d+)([-+*/])(\d+)=(\d+)(?!\d)")


def draw_three(rng: random.Random, difficulty: int) -> tuple[int, ...]:
    """Three different small numbers: up to 9, or 11 beyond the longest trace."""
    return tuple(rng.sample(range(2, 10 if difficulty <= LONGEST else 12), 3))


class TraceError(ValueError):
    """A trace that does not prove its answer; the message says which check failed and where."""


class Task(ABC):
    """One family of questions.

    ``draw`` samples parameters (difficulty 1 to 4), ``render`` writes question, reasoning and
    answer for them, ``solve`` answers a question from its text alone, and ``check_form`` raises
    `TraceError` where the reasoning breaks the strategy's own rules.

    ``share``: how many questions it gives for each one of a task of share 1 of its strategy.
    """

    name: ClassVar[str]
    strategy: ClassVar[str]
    share: ClassVar[int] = 1

    @abstractmethod
    def draw(self, rng: random.Random, difficulty: int) -> Params:
        """Sample the parameters that decide the question's mathematics."""

    def canonical(self, params: Params) -> Params:
        """Parameters up to symmetry: equal results mean the same problem, so the same split."""
        return params

    @abstractmethod
    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        """Question, reasoning (without the outer think tags) and answer; ``rng`` picks words."""

    @abstractmethod
    def solve(self, question: str) -> str:
        """The answer, computed from the question's text; `TraceError` if it cannot be read."""

    @abstractmethod
    def check_form(self, question: str, reasoning: str) -> None:
        """Raise `TraceError` where the reasoning breaks this strategy's rules."""


def numbers(text: str) -> list[int]:
    """All runs of digits in ``text``, in order."""
    return [int(run) for run in re.findall(r"\d+", text)]


def read(pattern: str, question: str) -> re.Match[str]:
    """Match ``pattern`` somewhere in the question, or raise `TraceError`."""
    match = re.search(pattern, question)
    if match is None:
        raise TraceError(f"the question {question!r} does not read as {pattern!r}")
    return match


def require(condition: bool, message: str) -> None:
    """Raise `TraceError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise TraceError(message)


def check_arithmetic(reasoning: str) -> int:
    """Check every equation of a trace in exact rational arithmetic; return how many there were."""
    count = 0
    for left, operator, right, result in EQUATION.findall(reasoning):
        a, b = Fraction(left), Fraction(right)
        require(operator != "/" or b != 0, f"division by zero in {left}{operator}{right}={result}")
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[operator]
        require(value == int(result), f"{left}{operator}{right}={result} is false")
        count += 1
    return count
