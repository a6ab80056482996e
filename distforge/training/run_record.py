"""What a run tells the registry of itself: that it runs, its checkpoints, its models, its end."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from pathlib import Path
from typing import Any, Self

from distforge.errors import RunStopped
from distforge.registry import RegistryConfig, Session
from distforge.registry.manifest import manifest_id
from distforge.registry.publisher import Publisher
from distforge.training.distributed import World

REGISTRY_FILE = "registry.db"
SPOOL_FILE = "registry.spool.jsonl"


class RunRecord:
    """A run's session in the registry; a context manager around the run.

    Nothing is written before `start`: a run that is refused leaves no trace. Every call notes a
    line in the spool beside the run directories and returns; only `register` waits, at the end of a
    run. On ranks other than 0, or with the registry off, calls do nothing.

    Args:
        config: see `RegistryConfig`.
        directory: the run's.
        phase, step: of the pipeline.
        identity: what makes two runs the same run (a hash).
        world: this process.
    """

    def __init__(
        self,
        config: RegistryConfig,
        directory: Path,
        phase: int,
        step: int,
        identity: str,
        world: World,
    ) -> None:
        self._publisher: Publisher | None = None
        self._uri = ""
        self._wait_seconds = config.wait_seconds
        if not config.enabled or not world.is_main:
            return
        directory = directory.absolute()
        host = socket.gethostname()
        digest = hashlib.sha256(f"{host}:{directory}:{identity}".encode()).hexdigest()
        self._session = Session(
            id=f"{directory.name}-{digest[:12]}",
            phase=phase,
            step=step,
            directory=str(directory),
            host=host,
            status="RUNNING",
        )
        self._uri = config.uri or f"sqlite:///{directory.parent / REGISTRY_FILE}"
        self._spool = directory.parent / SPOOL_FILE

    def start(self) -> None:
        """The run's inputs are in order and it begins."""
        if self._uri:
            self._publisher = Publisher(self._uri, self._spool)
            self._note()

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was saved: where it lies, and its manifest's id."""
        if self._publisher is not None:
            where = {"path": str(path.absolute()), "manifest": manifest_id(path)}
            self._note(checkpoints={step: where})

    def register(self, *models: dict[str, Any]) -> list[str]:
        """Register models, each the parent of the next; their versions, empty strings for those
        that the registry could not take in `RegistryConfig.wait_seconds` and will get later.

        Args:
            models: keyword arguments of `Spool.register`.
        """
        if self._publisher is None:
            return [""] * len(models)
        spool, keys = self._publisher.spool, [""]
        for model in models:
            metadata = {**model["metadata"], "session": self._session.id}
            keys.append(spool.register(**{**model, "metadata": metadata, "parent_key": keys[-1]}))
        self._publisher.flush(self._wait_seconds)
        return [(spool.outcome(key) or {}).get("version", "") for key in keys[1:]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._publisher is None:
            return
        stopped = kind is not None and issubclass(kind, RunStopped | KeyboardInterrupt)
        status = "FINISHED" if kind is None else "STOPPED" if stopped else "FAILED"
        self._note(status=status)
        # A run that ends well can wait for its last line to arrive; one that was told to stop not.
        if kind is None:
            self._publisher.flush(self._wait_seconds)
        self._publisher.close()

    def _note(self, **changes: Any) -> None:
        if self._publisher is not None:
            self._publisher.spool.session(dataclasses.replace(self._session, **changes))
            self._publisher.send()
