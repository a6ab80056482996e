"""One example: a question, the verified reasoning that answers it, and where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distforge.data.strategies import STRATEGIES
from distforge.errors import InputError

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Example:
    """One row of a reasoning dataset.

    ``reasoning`` is the text between question and answer, thinking tokens included. ``verifier``
    names the task whose checker recomputes the answer from the question, or is ``"exact"`` for
    data from outside, where the answer is compared with ``answer``. ``checks`` lists the checks
    that the trace passed when it was made.
    """

    id: str
    split: str
    strategy: str
    task: str
    difficulty: int
    question: str
    reasoning: str
    answer: str
    seed: int
    verifier: str
    checks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON types, fields in declaration order."""
        return {**dataclasses.asdict(self), "checks": list(self.checks)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> Example:
        """Read a row; ``where`` (file and line) begins the message of any `InputError`."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in row:
                raise InputError(f"{where}: field {field.name!r} is missing; expected an example")
            values[field.name] = row[field.name]
        values["checks"] = _strings(values["checks"], where)
        for name in ("difficulty", "seed"):
            if not isinstance(values[name], int) or isinstance(values[name], bool):
                raise InputError(f"{where}: {name} is {values[name]!r}; expected an integer")
        for name in ("id", "split", "strategy", "task", "question", "reasoning", "answer"):
            require_text(values[name], name, where, empty=name == "reasoning")
        require_strategy(values["strategy"], where)
        if values["split"] not in SPLITS:
            raise InputError(f"{where}: split is {values['split']!r}; expected one of {SPLITS}")
        return cls(**values)


def require_text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
    """Return ``value`` if it is text (non-empty unless ``empty``); else an `InputError`."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise InputError(f"{where}: {name} is {value!r}; expected non-empty text")
    return value


def require_strategy(value: Any, where: str) -> str:
    """Return ``value`` if it names one of the seven strategies; else an `InputError`."""
    if value not in STRATEGIES:
        raise InputError(f"{where}: unknown strategy {value!r}; expected one of {STRATEGIES}")
    return str(value)


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: checks is {value!r}; expected a list of strings")
    return tuple(value)
