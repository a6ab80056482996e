"""What the registry holds, and which names and values it takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distforge.errors import InputError, require_name

ALIASES = ("champion", "baked-latest", "baked-best", "rl-latest", "rl-best")
VERDICTS = ("PASS", "THEATRE", "INCONCLUSIVE")
SESSION_FILE = "session.id"
PARENT, MANIFEST, PATH = "parent", "manifest", "model_path"
_OWN_TAGS = frozenset({"phase", "step", MANIFEST, PATH})
_MAX_TAG = 5000
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_VERSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})/([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class RegistryConfig:
    """Where models are registered.

    enabled: False registers nothing.
    uri: an SQLite file, ``sqlite:///models.db``, the ``http(s)://`` address of a registry server or
        a ``postgresql://`` database; empty is ``registry.db`` next to the run directories.
        Credentials of a server: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. One that
        this user serves on this machine needs none.
    wait_seconds: longest wait, at the end of a run, for a registry that takes nothing; while a
        model is being read or sent there is no limit. What it has not taken by then stays in the
        spool and is sent later.
    """

    enabled: bool = True
    uri: str = ""
    wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.wait_seconds >= 0:
            raise InputError(f"wait_seconds is {self.wait_seconds}; expected 0 or more")


@dataclass(frozen=True)
class ModelVersion:
    """One registered model. ``version`` is ``name/number``, ``parent`` likewise or empty.

    ``model_path`` is where the model was registered from; ``uploaded`` says that the registry's
    server holds a copy.
    """

    version: str
    model_path: Path
    manifest: str
    parent: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    uploaded: bool = False


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from (nearest first) and what was made of it (parents first)."""

    version: ModelVersion
    ancestors: tuple[ModelVersion, ...]
    descendants: tuple[ModelVersion, ...]


@dataclass(frozen=True)
class Session:
    """One run directory's training, however many processes and hosts it took.

    Attributes:
        id: kept in the run's directory, in `SESSION_FILE`.
        status: RUNNING, FINISHED, STOPPED (told to, and to be resumed), FAILED, or KILLED (it ended
            without a word).
        checkpoints: of steps, where each lies and the id of its manifest; the shards themselves
            stay there.
        retained: steps whose checkpoints are still there, all others being gone; None: not looked.
        lock: a file that is locked (`locks.exclusive`) while the run is under way; empty: none.
        at: when this was so, in seconds since 1970 by the host's clock; 0 is now.
    """

    id: str
    phase: int
    step: int
    directory: str
    host: str
    status: str
    checkpoints: dict[int, dict[str, str]] = field(default_factory=dict)
    retained: list[int] | None = None
    lock: str = ""
    at: float = 0.0

    def with_paths(self, changed: Callable[[str], str]) -> Session:
        """The same with all its paths changed."""
        checkpoints = {
            step: {**checkpoint, "path": changed(checkpoint["path"])}
            for step, checkpoint in self.checkpoints.items()
        }
        lock = self.lock and changed(self.lock)
        directory = changed(self.directory)
        return replace(self, directory=directory, checkpoints=checkpoints, lock=lock)


@dataclass(frozen=True)
class Handoff:
    """A version was offered to ``target`` (the next phase, or a version made of it)."""

    source: str
    target: str
    verdict: str
    metrics: dict[str, float] = field(default_factory=dict)


def split_version(version: str) -> tuple[str, str]:
    """Name and number of ``name/number``."""
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise InputError(
            f"version {version!r} is not of the form name/number, such as baked_reasoning/3"
        )
    return match[1], match[2]


def require_alias(alias: str) -> None:
    """`InputError` for an alias that is none of `ALIASES`."""
    if alias not in ALIASES:
        raise InputError(f"alias is {alias!r}; expected one of {', '.join(ALIASES)}")


def require_counts(**numbers: object) -> None:
    """`InputError` for what is not a whole number, 0 or more."""
    for name, number in numbers.items():
        if type(number) is not int or number < 0:
            raise InputError(f"{name} is {number!r}; expected a whole number, 0 or more")


def checked_tags(
    phase: int, step: int, model_type: str, metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Metadata as tags: strings as they are, other values as JSON, empty ones left out."""
    require_name("model_type", model_type)
    require_counts(phase=phase, step=step)
    tags = {"phase": str(phase), "step": str(step)}
    for key, value in metadata.items():
        require_name("a metadata key", key)
        if key in _OWN_TAGS:
            raise InputError(f"the metadata have the key {key!r}, which the registry sets; drop it")
        if value is None or value == "":
            continue
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(text) > _MAX_TAG:
            raise InputError(
                f"the metadata's {key!r} has {len(text)} characters; at most {_MAX_TAG} fit a tag, "
                "so put it into a file of the model"
            )
        if not text.isprintable():
            raise InputError(
                f"the metadata's {key!r} is {text[:40]!r}, with characters that cannot be printed; "
                "give plain text"
            )
        tags[key] = text
    return tags


def checked_metrics(metrics: Any) -> dict[str, float]:
    """Metrics by name; what is not finite was not measured and is left out."""
    checked = {}
    for name, value in dict(metrics or {}).items():
        if not isinstance(name, str) or not _METRIC.fullmatch(name) or ".." in name:
            raise InputError(
                f"a metric is called {name!r}; use letters, digits, '.', '_', '-', '/'"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"the metric {name!r} is {value!r}; expected a number")
        # A store holds no NaN that compares like a number.
        if math.isfinite(value):
            checked[name] = float(value)
    return checked
