"""Calls that are given up at a deadline."""

import threading

import pytest

from distforge.deadlines import DeadlinePassed, within


def test_what_a_call_returns_or_raises_is_passed_on():
    def fail() -> None:
        raise TimeoutError("of its own")

    def leave() -> None:
        raise SystemExit(4)

    assert within(60.0, lambda: 3, "three") == 3
    with pytest.raises(TimeoutError, match="of its own"):
        within(60.0, fail, "fails")
    with pytest.raises(SystemExit):
        within(60.0, leave, "leaves")


def test_a_call_that_never_returns_is_given_up_and_does_not_keep_the_process():
    never = threading.Event()
    with pytest.raises(DeadlinePassed):
        within(0.05, never.wait, "waits")
    [thread] = [thread for thread in threading.enumerate() if thread.name == "waits"]
    assert thread.daemon
    never.set()
    thread.join(60.0)
