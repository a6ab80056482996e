"""A failing sink is quiet between tries, and is as before when one succeeds."""

import logging
import math

import pytest

from distforge.telemetry.guard import Guard


class Sink:
    """Fails while it is ``broken``; counts the calls that reach it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
        self.broken: BaseException | None = None

    def clock(self) -> float:
        return self.now

    def __call__(self) -> str:
        self.calls += 1
        if self.broken is not None:
            raise self.broken
        return "done"


def test_pauses_double_and_the_end_and_the_return_are_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink()
    guard = Guard("sink", 5.0, sink.clock)
    assert guard.call(sink) == "done"
    sink.broken, tried_at = OSError(28, "No space left on device"), []
    with caplog.at_level(logging.WARNING):
        for second in range(80):
            sink.now, before = float(second), sink.calls
            assert guard.call(sink) is None
            if sink.calls > before:
                tried_at.append(second)
        assert tried_at == [0, 5, 15, 35, 75]
        assert not guard.alive
        sink.broken, sink.now = None, 200.0
        assert guard.call(sink) == "done"
        assert guard.call(sink) == "done"
        assert guard.alive
    stopped, again = [r.getMessage() for r in caplog.records]
    assert "sink logging stopped (OSError: [Errno 28] No space left on device)" in stopped
    assert again == "sink logging works again"
    # The next failure is a new one: the first pause again.
    sink.broken = OSError()
    guard.call(sink)
    before, sink.now = sink.calls, 206.0
    guard.call(sink)
    assert sink.calls == before + 1


def test_pauses_end_at_ten_minutes() -> None:
    sink = Sink()
    guard, sink.broken = Guard("sink", 5.0, sink.clock), OSError()
    for second in range(0, 20_000, 10):
        sink.now = float(second)
        guard.call(sink)
    before, sink.now = sink.calls, sink.now + 600
    guard.call(sink)
    assert sink.calls == before + 1


@pytest.mark.parametrize("pause, error", [(math.inf, OSError()), (0.0, SystemExit(1))])
def test_what_cannot_come_back_is_not_tried_again(pause: float, error: BaseException) -> None:
    sink = Sink()
    guard, sink.broken = Guard("sink", pause, sink.clock), error
    guard.call(sink)
    sink.now = 1e9
    assert guard.call(sink) is None
    assert sink.calls == 1


def test_without_a_pause_every_call_is_tried() -> None:
    sink = Sink()
    guard, sink.broken = Guard("sink", 0.0, sink.clock), OSError()
    for _ in range(3):
        guard.call(sink)
    assert sink.calls == 3
