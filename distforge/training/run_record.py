"""What a run tells the registry of itself: that it runs, its checkpoints, its models, its end."""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from distforge import durable
from distforge.errors import RunStopped
from distforge.registry import RegistryConfig, Session
from distforge.registry.manifest import MANIFEST_NAME, manifest_id
from distforge.registry.publisher import Publisher
from distforge.registry.records import SESSION_FILE
from distforge.registry.store import store_uri
from distforge.telemetry.jsonl import METRICS_NAME
from distforge.training.distributed import World
from distforge.training.run_directory import lock_file

REGISTRY_FILE = "registry.db"
SPOOL_FILE = "registry.spool.jsonl"
_STEP = re.compile(r"step_(\d+)")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAIL_BYTES = 1 << 16

_log = logging.getLogger(__name__)


class RunRecord:
    """A run's session in the registry; a context manager around the run.

    Nothing is written before `start`: a run that is refused leaves no trace. Every call notes a
    line in the spool beside the run directories and returns; only `register` waits, at the end of a
    run. What goes wrong here is a warning and nothing more: it neither ends the run nor takes the
    place of an error that does. On ranks other than 0, or with the registry off, calls do nothing.

    A run that is resumed, on whatever host, is the same session: its id lies in its directory. One
    that is killed is known by the lock of that directory, which `holding` holds meanwhile.

    Args:
        config: see `RegistryConfig`.
        directory: the run's.
        phase, step: of the pipeline.
        world: this process.

    Raises:
        InputError: the configuration's ``uri`` can be no registry.
    """

    def __init__(
        self, config: RegistryConfig, directory: Path, phase: int, step: int, world: World
    ) -> None:
        self._publisher: Publisher | None = None
        self._uri = ""
        self._unlisted: tuple[str, Path] | None = None
        self._wait_seconds = config.wait_seconds
        if not config.enabled or not world.is_main:
            return
        self._directory = directory.absolute()
        self._session = Session(
            id="",
            phase=phase,
            step=step,
            directory=str(self._directory),
            host=socket.gethostname(),
            status="RUNNING",
            lock=str(lock_file(self._directory)),
        )
        self._uri = config.uri or f"sqlite:///{self._directory.parent / REGISTRY_FILE}"
        self._spool = self._directory.parent / SPOOL_FILE
        store_uri(self._uri)

    def start(self) -> None:
        """The run's inputs are in order and it begins."""
        if not self._uri:
            return
        with _unharmed("could not be sent this run"):
            self._session = dataclasses.replace(self._session, id=_session_id(self._directory))
            self._publisher = Publisher(self._uri, self._spool, self._note_curves)
            self._note()

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was saved: where it lies, and its manifest's id; those before it that are
        gone are listed no longer."""
        self._list(f"could not be sent the checkpoint of step {step}", path.absolute().parent)

    def no_checkpoints(self, root: Path) -> None:
        """All of them are gone from ``root``: the run has its result."""
        self._list("could not be sent that the checkpoints are gone", root.absolute())

    def register(self, *models: dict[str, Any]) -> list[str]:
        """Register models, each the parent of the next; their versions, empty strings for those
        that the registry could not take in `RegistryConfig.wait_seconds` and will get later.

        Args:
            models: keyword arguments of `Spool.register`.
        """
        unknown = [""] * len(models)
        if self._publisher is None:
            return unknown
        with _unharmed("does not have the models of this run"):
            spool, keys = self._publisher.spool, [""]
            for model in models:
                metadata = {**model["metadata"], "session": self._session.id}
                noted = {**model, "metadata": metadata, "parent_key": keys[-1]}
                keys.append(spool.register(**noted))
            self._publisher.flush(self._wait_seconds)
            return [(spool.outcome(key) or {}).get("version", "") for key in keys[1:]]
        return unknown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._publisher is None:
            return
        stopped = kind is not None and issubclass(kind, RunStopped | KeyboardInterrupt)
        status = "FINISHED" if kind is None else "STOPPED" if stopped else "FAILED"
        self._list_again()
        with _unharmed("could not be sent this run's end"):
            self._note_curves()
            self._note(status=status)
            # A run that ends well can wait for its last line to arrive; one told to stop can not.
            if kind is None:
                self._publisher.flush(self._wait_seconds)
            self._publisher.close()

    def _list(self, unless: str, root: Path) -> None:
        """Note the checkpoints that ``root`` has now; ``unless``: what is said where that fails."""
        self._unlisted = unless, root
        self._list_again()

    def _list_again(self) -> None:
        """What could not be listed; where a file cannot be read, once more when the run ends."""
        if self._publisher is None or self._unlisted is None:
            return
        unless, root = self._unlisted
        with _unharmed(unless):
            found = dict(_checkpoints(root))
            self._note(checkpoints=found, retained=sorted(found))
            self._unlisted = None

    def _note(self, **changes: Any) -> None:
        if self._publisher is not None:
            now = dataclasses.replace(self._session, at=time.time(), **changes)
            self._publisher.spool.session(now)
            self._publisher.send()

    def _note_curves(self) -> None:
        if self._publisher is not None:
            file = self._directory / METRICS_NAME
            with suppress(OSError):  # a run that has logged nothing yet
                self._publisher.spool.curves(self._session.id, file, _whole_lines(file))


@contextmanager
def _unharmed(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        _log.warning("the registry %s (%s: %s); the run continues", what, name, error)


def _session_id(directory: Path) -> str:
    file = directory / SESSION_FILE
    with suppress(OSError, UnicodeDecodeError):
        kept = file.read_text("utf-8").strip()
        if _ID.fullmatch(kept):
            return kept
    made = f"{directory.name[:80]}-{secrets.token_hex(6)}"
    # A disk without room for it costs no more than that a resumed run is another session.
    with suppress(OSError):
        durable.write_text(file, made + "\n")
    return made


def _checkpoints(root: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for path in root.iterdir():
        match = _STEP.fullmatch(path.name)
        if match and (path / MANIFEST_NAME).exists():
            yield int(match[1]), {"path": str(path), "manifest": manifest_id(path)}


def _whole_lines(file: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    with open(file, "rb") as stream:
        start = max(0, stream.seek(0, 2) - _TAIL_BYTES)
        stream.seek(start)
        return start + stream.read().rfind(b"\n") + 1
