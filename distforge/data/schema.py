"""One example: a question, the verified reasoning that answers it, and where it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distforge.data.strategies import STRATEGIES
from distforge.errors import InputError

SPLITS = ("train", "heldout")
ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """A turn of a conversation; ``role`` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row of a reasoning dataset.

    ``reasoning`` is the text between question and answer, thinking tokens included. ``strategy`` is
    empty where the data name none. ``verifier`` names the task whose checker recomputes the answer
    from the question, or is ``"exact"`` for data from outside, where the answer is compared with
    ``answer``. ``checks`` lists the checks that the trace passed when it was made. ``context`` is
    what was said before the question: a system message, earlier turns.
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
    context: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[dict[str, str], ...]:
        """``context`` as chat templates take it: a dictionary a message."""
        return tuple(message._asdict() for message in self.context)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON types, fields in declaration order; ``context`` where there is one."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["checks"] = list(self.checks)
        values["context"] = list(self.turns)
        if not self.context:
            del values["context"]
        return values

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> Example:
        """Read a row; ``where`` (file and line) begins the message of any `InputError`."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name == "context":
                continue
            if field.name not in row:
                raise InputError(f"{where}: field {field.name!r} is missing; expected an example")
            values[field.name] = row[field.name]
        values["checks"] = _strings(values["checks"], where)
        for name in ("difficulty", "seed"):
            if not isinstance(values[name], int) or isinstance(values[name], bool):
                raise InputError(f"{where}: {name} is {values[name]!r}; expected an integer")
        for name in ("id", "split", "task", "question", "reasoning", "answer"):
            require_text(values[name], name, where, empty=name == "reasoning")
        values["strategy"] = require_strategy(values["strategy"], where)
        if values["split"] not in SPLITS:
            raise InputError(
                f"{where}: split is {values['split']!r}; expected one of {', '.join(SPLITS)}"
            )
        if row.get("context"):
            values["context"] = read_messages(row["context"], "context", where)
        return cls(**values)


def require_text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
    """Return ``value`` if it is text (non-empty unless ``empty``); else an `InputError`."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise InputError(
            f"{where}: {name} is {value!r}; expected non-empty text, so write it or remove the row"
        )
    return value


def require_strategy(value: Any, where: str) -> str:
    """``value`` if it names one of the seven strategies, nothing where it names none; else an
    `InputError`."""
    if value in (None, ""):
        return ""
    if value not in STRATEGIES:
        raise InputError(
            f"{where}: unknown strategy {value!r}; expected one of {', '.join(STRATEGIES)}, or none"
        )
    return str(value)


def read_messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A conversation, as OpenAI and TRL write one; an `InputError` where it is none.

    A developer's message is the system's, and of a content in parts the texts count.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"{where}: {name} is {value!r}; expected a list of messages")
    return tuple(_read_message(message, f"{where}: {name}[{n}]") for n, message in enumerate(value))


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {message!r}; expected an object with a role and a content")
    role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
    if role not in ROLES:
        raise InputError(
            f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}, so remove the row"
        )
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        kinds = {part.get("type") if isinstance(part, Mapping) else part for part in content}
        if kinds != {"text"}:
            raise InputError(f"{where} has parts that are no text; remove the row")
        content = "".join(str(part.get("text")) for part in content)
    thought = message.get("reasoning_content") or message.get("thinking")
    if role == "assistant" and isinstance(thought, str) and isinstance(content, str):
        content = f"<think>{thought.strip()}</think>\n{content}"
    return Message(role, require_text(content, f"the content of a message ({role})", where))


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: checks is {value!r}; expected a list of strings")
    return tuple(value)
