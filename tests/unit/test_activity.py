"""What a silent command says of itself."""

import re
import threading
import time

import pytest

from distforge.activity import counted, doing, heard, named, on_show, watched, what_goes_on

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
            count(1200, 0)
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

    def fails() -> None:
        with watched(listener, 0.05), doing("outer"):
            try:
                with doing("inner"):
                    raise ZeroDivisionError
            except ZeroDivisionError:
                assert listener.next().startswith("outer")
                raise

    with pytest.raises(ZeroDivisionError):
        fails()
    assert threading.active_count() == before


def test_what_is_counted_around_the_innermost_work_is_told_too() -> None:
    now = time.monotonic() + 30.0
    with doing("verify"):
        parts = counted(["a", "b", "c"], "verifying versions")
        assert next(parts) == "a"
        assert next(parts) == "b"
        with doing("hashing weights"):
            told = what_goes_on(now)
        assert re.match(r"hashing weights  elapsed 0:30  \(verifying versions: 1 of 3  ", told)
        assert list(parts) == ["c"]
        assert what_goes_on(now) == "verify  elapsed 0:30"


def test_what_another_thread_does_is_not_told() -> None:
    seen = []

    def work() -> None:
        with doing("sending") as count:
            count(1, 2)
            seen.append(what_goes_on(time.monotonic()))

    with doing("training"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(DEADLINE)
    assert seen == ["training  elapsed 0:00"]


def test_a_named_function_is_called_as_it_is() -> None:
    @named("loading {source} as {dtype}")
    def load(source: str, dtype: str = "auto") -> str:
        """Says what is told of it."""
        return f"{source}|{dtype}|{what_goes_on(time.monotonic())}"

    told = "m|float32|loading m as float32  elapsed 0:00"
    assert load("m", dtype="float32") == told
    assert load.__doc__ == "Says what is told of it."
    assert load("m") == "m|auto|loading m as auto  elapsed 0:00"
