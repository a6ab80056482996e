"""What ends a run without being a bug: bad input, files that fail, and a stop."""

import errno
import math
import os
import re
from collections.abc import Collection
from numbers import Real

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# How libraries in Rust (safetensors, tokenizers) tell of the system's error.
_NATIVE_ERROR = re.compile(r"\(os error (\d+)\)")
# torch maps a file's tensors into memory, and says so of what it cannot map.
_MAPPING_ERROR = re.compile(r"unable to .*(?:file|memory object) <([^>]*)>.*\((\d+)\)")
# safetensors says so of every file that it could not open, whatever the system's reason was.
_NOT_OPENED = re.compile(r"No such file or directory: (.+)")
# torch says only that it could not write all of a file.
_TORCH_ERRORS = ("inline_container", "iostream error")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE)
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EROFS: "mount it for writing, or write elsewhere",
    errno.ENOENT: "put it there, or name another",
    errno.EIO: "see that the disk is in order",
    errno.ENOMEM: "free memory, or start fewer processes on this machine",
}


class InputError(ValueError):
    """Bad input from outside: configuration, files, models, names.

    The message is one sentence with the offending value, what was expected and what to do.
    Command-line entry points print it without a traceback and exit with status 2.
    """


class RunStopped(BaseException):
    """The run was told to stop and can be resumed; command-line entry points exit with status 75.

    Not an `Exception`, as KeyboardInterrupt is not: it can be raised anywhere by a signal, and no
    ``except Exception`` on its way may take it for a failure of its own.
    """


def explain_file_error(error: BaseException) -> str:
    """What a failed file operation ran into, where and what to do, as one clause.

    An empty string where ``error`` is about something else. Native libraries have no error types
    for a file system and name no file.
    """
    number, path = None, ""
    if isinstance(error, OSError):
        if error.filename is not None or error.errno in _DISK_ERRORS:
            number, path = error.errno, os.fsdecode(error.filename or "")
        elif error.errno is None and (found := _NOT_OPENED.match(str(error))):
            number, path = errno.ENOENT, found[1]
            if os.path.exists(path):
                return f"{path}: it could not be opened; see that this user may read it"
    elif found := _NATIVE_ERROR.search(str(error)):
        number = int(found[1])
    elif found := _MAPPING_ERROR.search(str(error)):
        number, path = int(found[2]), found[1]
    elif any(words in str(error) for words in _TORCH_ERRORS):
        number = errno.ENOSPC
    if number is None:
        return ""
    remedy = _REMEDIES.get(number, "see that its file system works")
    return f"{path}{': ' if path else ''}{os.strerror(number)}; {remedy}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else its type: libraries explain at length.

    Of a system's error the words alone: its number helps nobody, and the path is named already.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_name(what: str, name: object) -> None:
    """`InputError` unless ``name`` is safe in a path, a URL and a filter."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; expected letters, digits, '.', '_' and '-', at most 100, "
            "beginning with a letter or digit"
        )


def require_in(interval: str, /, **values: float) -> None:
    """`InputError` unless every value, by its name, lies in ``interval``.

    Args:
        interval: such as "[0, 1)" or "(0, inf]", whose round ends are open.
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in values.items():
        inside = isinstance(value, Real) and not isinstance(value, bool)
        inside = inside and (value > low if interval[0] == "(" else value >= low)
        inside = inside and (value < high if interval[-1] == ")" else value <= high)
        if not inside:
            finite = "a finite number" if interval[-1] == ")" else "a number"
            least = f"at least {low:g}" if interval[0] == "[" else f"{finite} above {low:g}"
            wanted = least if high == math.inf else f"a number in {interval}"
            raise InputError(f"{name} is {value!r}; expected {wanted}")


def require_choice(what: str, value: object, choices: Collection[str]) -> None:
    """`InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(choices)}")
