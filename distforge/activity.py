"""What this process is doing, for whoever waits for it.

Long work names itself with `doing`, wherever it is. A command that is `watched` says what goes on
as soon as ten seconds have brought no other output, and every ten seconds from then on, with the
time left where that is known. Nobody watches a library call: there `doing` only keeps a name.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SILENCE_SECONDS = 10.0

Count = Callable[[float, float], None]
"""Is called with (done, total), in whatever is counted; a total of 0 is not known."""


@dataclass
class _Activity:
    what: str
    began: float
    done: float = 0.0
    total: float = 0.0

    def line(self, now: float) -> str:
        elapsed = now - self.began
        parts = [self.what]
        if self.done or self.total:
            parts[0] += f": {int(self.done):,}" + (f" of {int(self.total):,}" if self.total else "")
        parts.append(f"elapsed {format_seconds(elapsed)}")
        if self.total:
            left = elapsed / self.done * (self.total - self.done) if self.done else math.nan
            parts.append(f"ETA {format_seconds(left)}")
        return "  ".join(parts)


_doing: list[_Activity] = []
_last_heard = 0.0
_on_show = 0


@contextmanager
def doing(what: str) -> Iterator[Count]:
    """Names the work of the block, in words such as "reading data/mine"; yields what counts it.

    Blocks nest: the innermost is what goes on.
    """
    mine = _Activity(what, time.monotonic())
    _doing.append(mine)

    def count(done: float, total: float = 0.0) -> None:
        mine.done, mine.total = done, total

    try:
        yield count
    finally:
        _doing.remove(mine)


def counted(parts: Sequence[T], what: str) -> Iterator[T]:
    """The parts one after another, each of which is so much of the work."""
    with doing(what) as count:
        for number, part in enumerate(parts):
            count(number, len(parts))
            yield part


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
def watched(say: Callable[[str], None], silence_seconds: float = SILENCE_SECONDS) -> Iterator[None]:
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
    """The innermost work at a time of the monotonic clock; empty where there is none, or where it
    is on show."""
    current = _doing[-1:]  # a copy: the work may end meanwhile
    return current[0].line(now) if current and not _on_show else ""


def format_seconds(seconds: float) -> str:
    """``1:02`` or ``3:04:05``; ``-:--`` where the time is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
