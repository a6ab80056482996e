"""Reward functions, called as TRL calls them, and held to what they promise.

A function that was written for TRL's GRPOTrainer or RLOOTrainer works unchanged: it gets by name
``prompts``, ``completions``, ``completion_ids``, ``trainer_state`` and each column of the data,
lists of equal length, as far as it takes them. Of a conversation, prompts are lists of messages and
each completion is the list of the one message that was written. It may be a coroutine.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from distforge.deadlines import DeadlinePassed, within
from distforge.errors import InputError, first_line
from distforge.rewards.loading import load_function

# What TRL passes beside the columns. The last two keep a table of TRL's; here they do nothing.
_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_NOT_COLUMNS = {"prompt", "completion", "completion_ids"}


@dataclass(frozen=True)
class Written:
    """N completions to judge. ``rows`` names each one's row of the data, ``columns`` holds a list
    of N by name."""

    rows: Sequence[str]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """rewards: of N completions, weighted sums; NaN where no function says anything. components: by
    name of the function, what it said; NaN for None."""

    rewards: list[float]
    components: dict[str, list[float]]


class RewardFunctions:
    """One or several with weights.

    Args:
        names: see `load_function`.
        weights: one each; by default 1 each.
        deadline: seconds that a call may take.

    Raises:
        InputError: no such function, or another number of weights.
    """

    def __init__(
        self, names: Sequence[str], weights: Sequence[float] = (), deadline: float = 60.0
    ) -> None:
        if weights and len(weights) != len(names):
            raise InputError(
                f"reward.weights has {len(weights)} numbers for {len(names)} functions; give one "
                "each"
            )
        self._functions = {name: load_function(name) for name in names}
        self._weights = dict(zip(names, weights or [1.0] * len(names), strict=True))
        self._deadline = deadline

    def require_columns(self, columns: Sequence[str]) -> None:
        """Refuse data that lack what a function cannot do without.

        Raises:
            InputError: names function and column.
        """
        for name, function in self._functions.items():
            for parameter in _parameters(function):
                needed = parameter.default is parameter.empty and parameter.kind in (
                    parameter.POSITIONAL_OR_KEYWORD,
                    parameter.KEYWORD_ONLY,
                )
                if needed and parameter.name not in (*_GIVEN, *columns):
                    raise InputError(
                        f"the reward {name!r} wants the column {parameter.name!r}, and the data "
                        f"have {', '.join(sorted(columns)) or 'none'}; add it, or give it a default"
                    )

    def __call__(self, written: Written, step: int = 0) -> Judged:
        """Judge; ``step`` is what ``trainer_state.global_step`` says.

        Raises:
            InputError: a function that raises, takes too long, or gives back something else than N
                numbers; names it and the row.
        """
        components = {
            name: self._judge(name, function, written, step)
            for name, function in self._functions.items()
        }
        rewards = []
        for values in zip(*components.values(), strict=True):
            known = [
                weight * value
                for weight, value in zip(self._weights.values(), values, strict=True)
                if not math.isnan(value)
            ]
            rewards.append(math.fsum(known) if known else math.nan)
        return Judged(rewards, components)

    def _judge(
        self, name: str, function: Callable[..., Any], written: Written, step: int
    ) -> list[float]:
        given: dict[str, Any] = {
            key: value for key, value in written.columns.items() if key not in _NOT_COLUMNS
        }
        given |= {
            "prompts": written.prompts,
            "completions": written.completions,
            "completion_ids": written.completion_ids,
            "trainer_state": SimpleNamespace(global_step=step),
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        parameters = _parameters(function)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            taken = {parameter.name for parameter in parameters}
            given = {key: value for key, value in given.items() if key in taken}
        values = self._within_deadline(name, function, given, written)
        return _checked(name, values, written)

    def _within_deadline(
        self, name: str, function: Callable[..., Any], given: dict[str, Any], written: Written
    ) -> Any:
        def call() -> Any:
            found = function(**given)
            return asyncio.run(found) if inspect.iscoroutine(found) else found

        try:
            return within(self._deadline, call, f"reward {name}")
        except DeadlinePassed:
            raise InputError(
                f"the reward {name!r} took more than {self._deadline:g} s for "
                f"{len(written.rows)} completions, from row {written.rows[0]!r} on; make it "
                "faster, or raise reward.deadline_seconds"
            ) from None
        except (Exception, SystemExit) as error:
            raise InputError(
                f"the reward {name!r} raised {type(error).__name__}: {first_line(error)}, on "
                f"{len(written.rows)} completions {_which(function, given, written)}; correct it"
            ) from error


def _which(function: Callable[..., Any], given: dict[str, Any], written: Written) -> str:
    """The first row that makes the function raise alone, where one does and soon."""
    if inspect.iscoroutinefunction(function):
        return f"from row {written.rows[0]!r} on"
    for number, row in enumerate(written.rows):
        alone = {
            key: value[number : number + 1]
            if isinstance(value, list | tuple) and len(value) == len(written.rows)
            else value
            for key, value in given.items()
        }
        try:
            function(**alone)
        except (Exception, SystemExit):
            return f"of row {row!r}"
    return f"from row {written.rows[0]!r} on"


def _checked(name: str, values: Any, written: Written) -> list[float]:
    try:
        found = list(values)
    except TypeError:
        raise InputError(
            f"the reward {name!r} returned {type(values).__name__}; expected a list of numbers"
        ) from None
    if len(found) != len(written.rows):
        raise InputError(
            f"the reward {name!r} returned {len(found)} values for {len(written.rows)} "
            f"completions, from row {written.rows[0]!r} on; expected one each"
        )
    numbers = []
    for row, value in zip(written.rows, found, strict=True):
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if value is not None and not math.isfinite(number):
            raise InputError(
                f"the reward {name!r} gave {value!r} to row {row!r}; expected a finite number, or "
                "None where it has nothing to say"
            )
        numbers.append(number)
    return numbers


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _ignore(*_: Any, **__: Any) -> None:
    """What TRL offers for a table of its own."""
