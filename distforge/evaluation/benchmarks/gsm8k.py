"""GSM8K (Cobbe et al. 2021): school arithmetic in words, the answer written freely.

Prompts and the reading of answers are those of lm-evaluation-harness, task gsm8k version 3.0:
``Question: …\\nAnswer:`` after solved examples; "strict" takes what follows the first ``####``,
"flexible" the last number of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from distforge.errors import InputError
from distforge.evaluation.benchmarks.answering import Answerer, Judged, solved, with_examples
from distforge.evaluation.benchmarks.rows import Row, read_splits

STOPS = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
# What two answers may differ in.
_IGNORED = re.compile(r"(?s).*#### |,|\$|\.$")


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer, which ends in ``#### number``."""

    question: str
    answer: str


class GSM8K:
    """The questions of a file or directory; see `BenchmarksConfig`.

    Raises:
        InputError: files that are no GSM8K.
    """

    name = "gsm8k"
    # Models that were taught here write "Answer: 18", which "strict" never counts.
    headline = "flexible"

    def __init__(self, path: str, limit: int, shots: int) -> None:
        asked, examples = read_splits(path, limit, shots)
        self.questions = [_problem(row) for row in asked]
        worked = [_problem(row) for row in examples]
        self._examples = [solved(problem.question, problem.answer) for problem in worked]

    def judge(self, answerer: Answerer, mine: Sequence[int]) -> list[Judged]:
        """Ask the chosen questions."""
        problems = [self.questions[index] for index in mine]
        asked = [with_examples(answerer, p.question, self._examples) for p in problems]
        written = iter(answerer.write([text for text in asked if text is not None], STOPS))
        return [
            Judged(problem.question, _bare(problem.answer), None)
            if text is None
            else judge(problem, text, next(written))
            for problem, text in zip(problems, asked, strict=True)
        ]


def judge(problem: Problem, asked: str, text: str) -> Judged:
    """A written answer, read strictly and flexibly."""
    wanted = _bare(problem.answer)
    marked, numbers = _STRICT.search(text), _NUMBER.findall(text)
    strict = None if marked is None else _bare(marked[1])
    flexible = _bare("".join(numbers[-1])) if numbers else None
    return Judged(
        problem.question,
        wanted,
        asked,
        text,
        flexible,
        {"strict": strict == wanted, "flexible": flexible == wanted},
        f"after the first '####': {_named(strict)}; the last number: {_named(flexible)}",
    )


def _named(value: str | None) -> str:
    return "nothing" if value is None else repr(value)


def _bare(answer: str) -> str:
    return _IGNORED.sub("", answer.strip()).strip()


def _problem(row: Row) -> Problem:
    question, answer = row.values.get("question"), row.values.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str) or not _STRICT.search(answer):
        raise InputError(
            f"{row.where} is no row of GSM8K: expected a 'question' and an 'answer' that ends in "
            f"'#### number', not {sorted(row.values)}"
        )
    return Problem(question, answer)
