"""Reward functions by name: a verifier, ``regex:PATTERN``, ``file.py:name``, ``module:name``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from distforge.errors import InputError, first_line
from distforge.rewards.verifiers import VERIFIERS, regex
from distforge.user_code import run_file


def load_function(name: str) -> Callable[..., Any]:
    """The function that ``name`` means.

    Raises:
        InputError: there is none, or what is there cannot be imported or called.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    place, _, rest = name.partition(":")
    if place == "regex" and rest:
        try:
            return regex(rest)
        except re.error as error:
            raise InputError(
                f"reward.function {name!r} is no regular expression: {error}"
            ) from None
    if not rest:
        raise InputError(
            f"reward.function is {name!r}; expected one of {', '.join(VERIFIERS)}, regex:PATTERN, "
            "file.py:function or package.module:function"
        )
    function = getattr(_module(place, name), rest, None)
    if not callable(function):
        raise InputError(f"reward.function {name!r}: {place} has no function {rest!r}; name one")
    return function


def _module(place: str, name: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        return run_file(Path(place).expanduser())
    except Exception as error:  # whatever a user's file does when it is imported
        raise InputError(
            f"reward.function {name!r} cannot be imported ({type(error).__name__}: "
            f"{first_line(error)}); correct {place}"
        ) from error
