"""A run's configuration and its metrics on its page in MLflow: params, and a curve a metric.

They are read from the run's own ``config.toml`` and ``metrics.jsonl``, by who sends, never by who
trains. Sending a part again changes nothing: a value of one time and step is there once.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from distforge.errors import InputError
from distforge.registry.records import SESSION_FILE
from distforge.registry.sessions import find_runs
from distforge.registry.store import Store

# The details stay in the file.
_MAIN = ("train/", "baking/", "rl/", "prompt/")
_OWN_KEYS = ("step", "time", "seconds")
_CONFIG_FILE = "config.toml"
# What MLflow takes at once.
_METRICS, _PARAMS, _KEY, _VALUE = 1000, 100, 250, 6000


def record_curves(store: Store, session: str, file: Path, begin: int, end: int) -> None:
    """See `ModelRegistry.record_curves`.

    Raises:
        InputError: the session is unknown, or ``file`` is gone or another run's by now.
    """
    owner = file.with_name(SESSION_FILE)
    if not file.is_file() or not owner.is_file() or owner.read_text("utf-8").strip() != session:
        raise InputError(
            f"{file} is no longer that of the session {session}; look for the run's metrics where "
            "it was moved"
        )
    runs = find_runs(store, f"tags.session = '{session}'")
    if not runs:
        raise InputError(f"the session {session} is not recorded; record it first")
    from mlflow.entities import Metric, Param

    run = runs[0]
    if begin == 0:
        known = run.data.params
        params = [Param(k, v) for k, v in _params(file.parent / _CONFIG_FILE) if k not in known]
        for some in _batches(params, _PARAMS):
            store.log_batch(run.info.run_id, params=some)
    with open(file, "rb") as stream:
        stream.seek(begin)
        lines = stream.read(end - begin).split(b"\n")
    metrics = (Metric(*values) for line in lines for values in _values(line))
    for batch in _batches(metrics, _METRICS):
        store.log_batch(run.info.run_id, metrics=batch)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _values(line: bytes) -> Iterator[tuple[str, float, int, int]]:
    """Name, value, milliseconds and step of the main metrics in a line; none of a damaged one."""
    try:
        record = json.loads(line)
        when = round(1000 * datetime.fromisoformat(record["time"]).timestamp())
        step = int(record["step"])
    except (ValueError, KeyError, TypeError):
        return
    for name, value in record.items():
        measured = isinstance(value, int | float) and math.isfinite(value)
        if measured and name not in _OWN_KEYS and name.startswith(_MAIN):
            yield name, float(value), when, step


def _params(config: Path) -> Iterator[tuple[str, str]]:
    """The configuration, flat: ``optimizer.lr`` and its value."""
    try:
        settings = tomllib.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return
    yield from _flat(settings, "")


def _flat(settings: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}"[:_KEY], text[:_VALUE]
