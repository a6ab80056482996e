"""Sends a run's spool to the registry from a thread of its own: training never waits for it.

Noting something costs one flushed line on disk. Whether the registry is there, slow or away is the
thread's business; what it cannot send stays in the spool for the next run, or for
``distforge registry list``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from distforge.activity import named
from distforge.errors import InputError, first_line
from distforge.registry.registry import ModelRegistry
from distforge.registry.spool import Spool
from distforge.registry.store import RegistryUnavailable, is_server, store_uri

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 10.0
_LAST_RETRY_SECONDS = 300.0
_NOTE_SECONDS = 30.0


class Publisher:
    """Sends what `spool` notes; on rank 0 alone. A context manager: leaving it stops the thread.

    Args:
        uri: the registry, see `RegistryConfig`.
        spool: the spool's file.
        note: called by the thread now and then, to note what there is to send.

    Raises:
        InputError: ``uri`` can be no registry.
    """

    def __init__(self, uri: str, spool: Path, note: Callable[[], None] = lambda: None) -> None:
        store_uri(uri)
        self.spool = Spool(spool)
        self._uri, self._note = uri, note
        events = spool.with_name("registry.events.jsonl") if is_server(uri) else None
        self._events = events
        self._registry: ModelRegistry | None = None
        self._state = threading.Condition()
        self._asked = self._answered = self._pieces = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Have what is pending sent; returns at once."""
        with self._state:
            self._asked += 1
            self._state.notify_all()

    @named("sending to the registry")
    def flush(self, seconds: float) -> bool:
        """Have what is pending sent and wait for the attempt to end; whether nothing is left.

        It waits at most ``seconds`` for a registry that takes nothing; while it reads or takes a
        model, as long as that takes.
        """
        with self._state:
            self._asked += 1
            mine = self._asked
            self._state.notify_all()
            before = -1
            while self._answered < mine and before != self._pieces:
                before = self._pieces
                self._state.wait_for(lambda: self._answered >= mine, timeout=seconds)
        return not self.spool.pending()

    def close(self, seconds: float = 5.0) -> None:
        """Stop the thread, waiting for a call under way at most ``seconds``."""
        with self._state:
            self._stopping = True
            self._state.notify_all()
        self._thread.join(seconds)
        if self.spool.unwritten and self.spool.pending():
            _log.warning(
                "%d records for the registry could neither be sent nor written to %s, and are lost",
                self.spool.unwritten,
                self.spool.path,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        pause, retry = _NOTE_SECONDS, _RETRY_SECONDS
        while True:
            with self._state:
                self._state.wait_for(
                    lambda: self._stopping or self._asked > self._answered, timeout=pause
                )
                if self._stopping:
                    return
                asked = self._asked
            if self._attempt():
                pause, retry = _NOTE_SECONDS, _RETRY_SECONDS
            else:
                pause, retry = retry, min(_LAST_RETRY_SECONDS, 2 * retry)
            with self._state:
                self._answered = asked
                self._state.notify_all()

    def _attempt(self) -> bool:
        """Whether nothing is left to send."""
        try:
            self._note()
            if self.spool.pending():
                if self._registry is None:
                    self._registry = ModelRegistry(
                        self._uri, events=self._events, progress=self._moved
                    )
                self.spool.replay(self._registry)
            return not self.spool.pending()
        except InputError as error:
            reason = str(error)
        except (Exception, SystemExit) as error:  # whatever it raises, the run is not to blame
            reason = f"{type(error).__name__}: {error}"
        self.spool.say_once(f"{reason}; the records wait in {self.spool.path}")
        return False

    def _moved(self) -> None:
        self._pieces += 1


@named("sending to {uri} what an earlier run could not")
def replay_spool(uri: str, path: Path) -> str:
    """Try once to send what an earlier run left in the spool at ``path``; a line about what is left
    there, or an empty string."""
    spool = Spool(path)
    if spool.path.exists() and spool.pending():
        events = path.with_name("registry.events.jsonl") if is_server(uri) else None
        try:
            spool.replay(ModelRegistry(uri, events=events))
        except (RegistryUnavailable, OSError) as error:
            return f"{len(spool.pending())} records wait in {path}: {first_line(error)}"
    refused = spool.failed()
    if refused:
        return f"{len(refused)} records of {path} were refused, the last: {refused[-1]['reason']}"
    return ""
