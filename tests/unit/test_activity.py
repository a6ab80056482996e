"""What a silent command says of itself."""

import re
import threading
import time

from distforge.activity import doing, heard, on_show, watched, what_goes_on

DEADLINE = 20.0


class Listener:
    """Takes lines, and waits for the next one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.came = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.came.set()

    def next(self) -> str:
        self.came.clear()
        assert self.came.wait(DEADLINE), "nothing was said"
        return self.lines[-1]


def test_the_innermost_work_is_told_with_how_far_it_is() -> None:
    listener = Listener()
    with watched(listener, 0.05), doing("bake"):
        assert re.fullmatch(r"bake  elapsed \d:\d\d", listener.next())
        with doing("reading rows") as count:
            count(1200)
            assert listener.next().startswith("reading rows: 1,200  elapsed ")
            count(0, 2000)
            assert re.search(r"reading rows: 0 of 2,000  .*ETA -:--$", listener.next())
            count(1999.5, 2000)
            assert re.search(r"reading rows: 1,999 of 2,000  .*ETA \d:\d\d$", listener.next())
        assert listener.next().startswith("bake  ")


def test_what_is_on_show_needs_no_words() -> None:
    with doing("training"):
        now = time.monotonic() + 61.0
        assert what_goes_on(now) == "training  elapsed 1:01"
        with on_show():
            assert what_goes_on(now) == ""
        assert what_goes_on(now) == "training  elapsed 1:01"
    assert what_goes_on(now) == ""


def test_whoever_talks_is_not_interrupted() -> None:
    """Only this long after the last word."""
    listener = Listener()
    with watched(listener, 0.3), doing("training"):
        began = time.monotonic()
        heard()
        listener.next()
        assert time.monotonic() - began >= 0.3


def test_the_watch_ends_with_the_block_and_work_with_its_failure() -> None:
    listener = Listener()
    before = threading.active_count()
    try:
        with watched(listener, 0.05), doing("outer"):
            try:
                with doing("inner"):
                    raise ZeroDivisionError
            except ZeroDivisionError:
                assert listener.next().startswith("outer")
                raise
    except ZeroDivisionError:
        pass
    assert threading.active_count() == before
