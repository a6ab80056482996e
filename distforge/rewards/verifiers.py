"""Built-in rewards: 1 for a right answer, 0 for a wrong one. Called as TRL calls reward functions.

The answer is what follows the last ``Answer:`` or ``####``, or stands in the last ``\\boxed{…}``;
of a text that marks none, what comes behind ``</think>``, or all of it. Its truth is the column
``expected``, which is the answer that a row's own ``answer`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from distforge.data.answers import compare, extract_answer
from distforge.data.tasks import TASKS
from distforge.rendering.thinking_tokens import CLOSE

# A number as it stands in a sentence; of a text that marks no answer, the last one is it.
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?![A-Za-z])")


def math(completions: Sequence[Any], expected: Sequence[str], **_: Any) -> list[float]:
    """Compared as mathematics: 3.50 is 3.5, 1,000 is 1000, $18 is 18, 1/2 is 0.5."""
    return _each(completions, expected, _same_number)


def exact(completions: Sequence[Any], expected: Sequence[str], **_: Any) -> list[float]:
    """The same text, but for letter case and spaces."""
    return _each(completions, expected, lambda text, truth: _plain(_said(text)) == _plain(truth))


def choice(completions: Sequence[Any], expected: Sequence[str], **_: Any) -> list[float]:
    """The letter that the answer begins with: "(B) 12" is B."""

    def same(text: str, truth: str) -> bool:
        given, wanted = _LETTER.match(_said(text).strip()), _LETTER.match(truth.strip())
        return bool(given and wanted) and given[1].upper() == wanted[1].upper()  # type: ignore[index]

    return _each(completions, expected, same)


def task(
    completions: Sequence[Any],
    expected: Sequence[str],
    question: Sequence[str],
    verifier: Sequence[str],
    **_: Any,
) -> list[float]:
    """By the checker of distforge.data that made the question, which computes the answer anew."""
    truths = [
        TASKS[name].solve(asked) if name in TASKS else truth
        for name, asked, truth in zip(verifier, question, expected, strict=True)
    ]
    return _each(completions, truths, lambda text, truth: compare(_said(text), truth).same)


def regex(pattern: str) -> Callable[..., list[float]]:
    """Whether the completion holds a match of ``pattern``."""
    compiled = re.compile(pattern)

    def matches(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(bool(compiled.search(text_of(one)))) for one in completions]

    return matches


VERIFIERS: dict[str, Callable[..., list[float]]] = {
    "math": math,
    "exact": exact,
    "choice": choice,
    "task": task,
}


def text_of(completion: Any) -> str:
    """A completion's text, which a conversation has in its last message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _each(
    completions: Sequence[Any], expected: Sequence[str], same: Callable[[str, str], bool]
) -> list[float]:
    pairs = zip(completions, expected, strict=True)
    return [float(same(text_of(one), truth)) for one, truth in pairs]


def _said(text: str) -> str:
    marked = extract_answer(text)
    return text.rpartition(CLOSE)[2] if marked is None else marked


def _same_number(text: str, truth: str) -> bool:
    marked = extract_answer(text)
    if marked is not None:
        return compare(marked, truth).same
    numbers = _NUMBER.findall(text.rpartition(CLOSE)[2])
    return bool(numbers) and compare(numbers[-1], truth).same


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
