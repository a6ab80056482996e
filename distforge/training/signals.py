"""Being told to stop: SIGTERM and SIGINT.

Schedulers send SIGTERM some seconds before SIGKILL, often to one process of many. Between steps
the ranks agree on it and all save at the same step; anywhere else there is nothing to save and
the run ends at once. Either way it ends with `RunStopped`, exit status 75 (EX_TEMPFAIL: try again).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from distforge.errors import RunStopped
from distforge.training.distributed import World

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_Handler = Callable[[int, FrameType | None], None]


class StopRequest:
    """Whether this process was told to stop, and whether any rank was."""

    def __init__(self) -> None:
        self.signal = 0

    def agreed(self, world: World) -> bool:
        """Whether any rank was told to stop; collective, the same answer everywhere."""
        told = torch.tensor(float(bool(self.signal)), device=world.device)
        world.all_reduce_max(told)
        return bool(told)


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Inside, a signal is only noted (and a second one too: launchers repeat them).

    One that nobody acted on inside is sent again at the end, to whoever listened before.
    """
    request = StopRequest()

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number

    with _handling(note):
        yield request
    if request.signal:
        os.kill(os.getpid(), request.signal)


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Inside, a signal raises `RunStopped` wherever the program is."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:  # a second one must not break what the first one cleans up
            signal.signal(each, signal.SIG_IGN)
        raise RunStopped(f"{signal.Signals(number).name} came outside of training")

    with _handling(stop):
        yield


@contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; a caller in another one keeps its own
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
