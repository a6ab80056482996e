"""What this process is doing, for whoever waits for it.

Long work names itself with `doing`, wherever it is. A command that is `watched` says what goes on
as soon as some seconds have brought no other output, and again after as many, with the time left
where that is known. Nobody watches a library call: there `doing` only keeps a name.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

Count = Callable[[float, float], None]
"""Is called with (done, total), in whatever is counted; a total of 0 is not known."""


@dataclass(eq=False)
class _Activity:
    what: str
    began: float
    done: float = 0.0
    total: float = 0.0

    def line(self, now: float) -> str:
        return progress_line(self.what, self.done, self.total, now - self.began)


_doing: list[_Activity] = []
_last_heard = 0.0
_on_show = 0


@contextmanager
def doing(what: str) -> Iterator[Count]:
    """Names the work of the block, in words such as "reading data/mine"; yields what counts it.

    Blocks nest: the innermost is what goes on. What another thread than the main one does is not
    told: nobody waits for it.
    """
    mine = _Activity(what, time.monotonic())
    if threading.current_thread() is threading.main_thread():
        _doing.append(mine)

    def count(done: float, total: float = 0.0) -> None:
        mine.done, mine.total = done, total

    try:
        yield count
    finally:
        if mine in _doing:  # else what it was part of has ended before, by a failure
            del _doing[_doing.index(mine) :]


def counted(parts: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The parts one after another, each of which is as much of the work as any.

    Args:
        total: how many they are, where they cannot say; unknown without it.
    """
    many = len(parts) if total is None and isinstance(parts, Sized) else total or 0
    with doing(what) as count:
        for number, part in enumerate(parts):
            count(number, many)
            yield part


def named(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function whose work has a name; ``{argument}`` in it is that argument of the call."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        def called(*args: P.args, **kwargs: P.kwargs) -> str:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return what.format_map(given.arguments)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with doing(called(*args, **kwargs)):
                return function(*args, **kwargs)

        return call

    return decorate


def heard() -> None:
    """Something was printed: silence begins anew."""
    global _last_heard
    _last_heard = time.monotonic()


@contextmanager
def on_show() -> Iterator[None]:
    """Inside, something that moves is on the terminal: nothing else needs to be said."""
    global _on_show
    _on_show += 1
    try:
        yield
    finally:
        _on_show -= 1


@contextmanager
def watched(say: Callable[[str], None], silence_seconds: float) -> Iterator[None]:
    """Inside, ``say`` gets a line, from a thread, whenever it was silent for so long."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(max(0.01, _last_heard + silence_seconds - time.monotonic())):
            now = time.monotonic()
            if now - _last_heard >= silence_seconds:
                heard()
                if line := what_goes_on(now):
                    say(line)

    heard()
    thread = threading.Thread(target=watch, name="distforge signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def what_goes_on(now: float) -> str:
    """The innermost work at a time of the monotonic clock, and how far the innermost is that is
    counted; empty where there is none, or where it is on show."""
    current = list(_doing)  # a copy: the work may end meanwhile
    if not current or _on_show:
        return ""
    line, counted_ones = current[-1].line(now), [one for one in current if one.total]
    around = counted_ones[-1] if counted_ones else current[-1]
    return line if around is current[-1] else f"{line}  ({around.line(now)})"


def progress_line(what: str, done: float, total: float, elapsed: float) -> str:
    """``reading: 3 of 12  elapsed 0:10  ETA 0:30``, without what is not known."""
    parts = [what]
    if done or total:
        parts[0] += f": {int(done):,}" + (f" of {int(total):,}" if total else "")
    parts.append(f"elapsed {format_seconds(elapsed)}")
    if total:
        left = elapsed / done * (total - done) if done else math.nan
        parts.append(f"ETA {format_seconds(left)}")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """``1:02`` or ``3:04:05``; ``-:--`` where the time is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
