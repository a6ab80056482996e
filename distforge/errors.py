"""What ends a run without being a bug: bad input, and being told to stop."""

import re
from collections.abc import Collection


class InputError(ValueError):
    """Bad input from outside: configuration, files, models, names.

    The message is one sentence with the offending value, what was expected and what to do.
    Command-line entry points print it without a traceback and exit with status 2.
    """


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def require_name(what: str, name: object) -> None:
    """`InputError` unless ``name`` is safe in a path, a URL and a filter."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; expected letters, digits, '.', '_' and '-', at most 100, "
            "beginning with a letter or digit"
        )


def require_choice(what: str, value: object, choices: Collection[str]) -> None:
    """`InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(choices)}")


class RunStopped(BaseException):
    """The run was told to stop and can be resumed; command-line entry points exit with status 75.

    Not an `Exception`, as KeyboardInterrupt is not: it can be raised anywhere by a signal, and no
    ``except Exception`` on its way may take it for a failure of its own.
    """
