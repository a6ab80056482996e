"""Calls that may never return, given up at a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(Exception):
    """The call was given up. Not a TimeoutError, which the call may raise itself."""


def within(seconds: float, action: Callable[[], T], name: str) -> T:
    """What ``action`` returns or raises.

    Args:
        seconds: the deadline.
        name: of the thread in which it runs.

    Raises:
        DeadlinePassed: it did neither in time. It goes on in its thread, which nothing can end.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon: what never returns must not keep the process.
    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    thread.join(seconds)
    if not outcome.done():
        raise DeadlinePassed
    return outcome.result()
