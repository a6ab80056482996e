"""How long a run waits at its end: for what moves, and not for what does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from distforge.registry import publisher
from distforge.registry.publisher import Publisher

DEADLINE = 60.0


class Slow:
    """A registry that takes a model in pieces, each when it is let to."""

    def __init__(self, *_arguments: object, progress: Callable[[], None], **_: object) -> None:
        self.progress = progress

    def register_model(self, *_arguments: object) -> str:
        for piece in PIECES:
            assert piece.wait(DEADLINE)
            self.progress()
        return "baked/1"


PIECES: list[threading.Event] = []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    monkeypatch.setattr(publisher, "ModelRegistry", Slow)
    PIECES[:] = [threading.Event() for _ in range(6)]
    return PIECES


def test_an_upload_may_take_longer_than_the_wait_while_it_moves(
    tmp_path: Path, slow: list[threading.Event]
) -> None:
    with Publisher(str(tmp_path / "registry.db"), tmp_path / "spool.jsonl") as ours:
        ours.spool.register(3, 1, "baked", tmp_path, {})
        waited: list[float] = []
        genuine = ours._state.wait_for

        def wait_for(ready: Callable[[], bool], timeout: float | None = None) -> bool:
            # Each time the run has waited for its seconds, one more piece has arrived.
            if threading.current_thread() is not ours._thread and timeout is not None:
                waited.append(timeout)
                before = ours._pieces
                if len(waited) <= len(slow):
                    slow[len(waited) - 1].set()
                return genuine(lambda: ready() or ours._pieces > before, timeout=DEADLINE)
            return genuine(ready, timeout=timeout)

        ours._state.wait_for = wait_for  # type: ignore[method-assign]
        moved = ours._moved

        def arrived() -> None:
            with ours._state:
                moved()
                ours._state.notify_all()

        ours._moved = arrived  # type: ignore[method-assign]
        assert ours.flush(0.01)
        assert len(waited) >= len(slow)


def test_one_that_stalls_is_left(tmp_path: Path, slow: list[threading.Event]) -> None:
    with Publisher(str(tmp_path / "registry.db"), tmp_path / "spool.jsonl") as ours:
        ours.spool.register(3, 1, "baked", tmp_path, {})
        slow[0].set()
        assert not ours.flush(0.05)
        for piece in slow:
            piece.set()
        assert ours.flush(DEADLINE)


def test_the_thread_outlives_whatever_an_attempt_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [SystemExit(1), MemoryError(), RuntimeError("burnt"), None]

    def opened(*_arguments: object, **_options: object) -> object:
        if (error := errors.pop(0)) is not None:
            raise error
        return Slow(progress=lambda: None)

    PIECES.clear()
    monkeypatch.setattr(publisher, "ModelRegistry", opened)
    with Publisher(str(tmp_path / "registry.db"), tmp_path / "spool.jsonl") as ours:
        ours.spool.register(3, 1, "baked", tmp_path, {})
        assert [ours.flush(DEADLINE) for _ in range(4)] == [False, False, False, True]
    assert "RuntimeError: burnt" in caplog.text
