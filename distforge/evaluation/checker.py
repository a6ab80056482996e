"""A user's own check of an answer: a function in a file of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distforge.errors import InputError
from distforge.user_code import run_file

Checker = Callable[[str, str], bool]


def load_checker(where: str) -> Checker:
    """The function that ``where``, ``file.py:function``, names; the file is run.

    It is called with a question and an answer and says whether the answer is as wanted.

    Raises:
        InputError: no such file or function, or the file raises; the function that is returned
            raises it where the user's own raises or returns no bool.
    """
    name, _, function = where.rpartition(":")
    path = Path(name)
    if path.suffix != ".py" or not function or not path.is_file():
        raise InputError(f"the check is {where!r}; give file.py:function, of a file that exists")
    try:
        module = run_file(path)
    except Exception as error:
        raise InputError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{path} has no function {function!r}; name one that it defines")

    def check(question: str, answer: str) -> bool:
        try:
            follows = found(question, answer)
        except Exception as error:
            raise InputError(
                f"{where} raised {type(error).__name__}: {error}, of the question "
                f"{question[:60]!r} with the answer {answer[:60]!r}"
            ) from error
        if not isinstance(follows, bool):
            raise InputError(f"{where} returned {follows!r}; a check returns True or False")
        return follows

    return check
