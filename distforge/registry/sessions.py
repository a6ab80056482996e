"""Training sessions, hand-offs and metrics: what the registry keeps as MLflow runs.

A session's run has the tag ``session``, with its state in other tags; a hand-off's run the tag
``handoff_source``. Both lie beside the versions' runs, in the same experiment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distforge.errors import InputError, require_name
from distforge.locks import Held, exclusive
from distforge.registry.places import found_path, kept_path
from distforge.registry.records import (
    VERDICTS,
    Handoff,
    Session,
    require_counts,
    split_version,
)
from distforge.registry.store import RegistryUnavailable, Store, experiment_id

# What MLflow's own page calls them.
STATUSES = {
    "RUNNING": "RUNNING",
    "FINISHED": "FINISHED",
    "STOPPED": "KILLED",
    "FAILED": "FAILED",
    "KILLED": "KILLED",
}
_CHECKPOINT = "checkpoint.step_"
_CHUNK = 50


def record_session(store: Store, session: Session, folder: Path | None) -> None:
    """Write a session's state over what is known of it; paths are kept relative to ``folder``."""
    require_name("a session's id", session.id)
    require_counts(phase=session.phase, step=session.step)
    if session.status not in STATUSES:
        raise InputError(f"status is {session.status!r}; expected one of {', '.join(STATUSES)}")
    session = session.with_paths(lambda path: kept_path(Path(path), folder))
    tags = {
        "session": session.id,
        "phase": str(session.phase),
        "step": str(session.step),
        "directory": session.directory,
        "host": session.host,
        "status": session.status,
        "lock": session.lock,
    }
    for number, checkpoint in session.checkpoints.items():
        tags[f"{_CHECKPOINT}{number}"] = json.dumps(checkpoint, sort_keys=True)
    run = _written(store, session, tags)
    if session.retained is not None:
        retained = {f"{_CHECKPOINT}{number}" for number in session.retained}
        for key in run.data.tags:
            if key.startswith(_CHECKPOINT) and key not in retained:
                store.delete_tag(run.info.run_id, key)
    if session.status != "RUNNING":
        _end(store, run, session.status, session.at)
    elif run.info.status != "RUNNING":
        store.update_run(run.info.run_id, status="RUNNING")


def read_sessions(store: Store, folder: Path | None) -> list[Session]:
    """All sessions, oldest first. Two of one id (recorded at once by two hosts) count as one."""
    found: dict[str, Session] = {}
    for run in find_runs(store, "tags.session LIKE '%'"):
        tags = run.data.tags
        checkpoints = {
            int(key.removeprefix(_CHECKPOINT)): json.loads(value)
            for key, value in tags.items()
            if key.startswith(_CHECKPOINT)
        }
        earlier = found.get(tags["session"])
        session = Session(
            id=tags["session"],
            phase=int(tags["phase"]),
            step=int(tags["step"]),
            directory=tags["directory"],
            host=tags["host"],
            status=tags["status"],
            checkpoints={**(earlier.checkpoints if earlier else {}), **checkpoints},
            lock=tags.get("lock", ""),
        )
        found[session.id] = session.with_paths(lambda path: str(found_path(path, folder)))
    return list(found.values())


def record_killed(store: Store, folder: Path | None) -> None:
    """End the sessions whose processes are gone without a word: where the directory can be seen
    from here and its lock is free. It ended when a file in its directory last changed.

    Where a lock does not reach other hosts, one that runs there says so again with its next record.
    """
    for run in find_runs(store, "tags.status = 'RUNNING' and tags.session LIKE '%'"):
        if not run.data.tags.get("lock"):
            continue
        lock = found_path(run.data.tags["lock"], folder)
        directory = found_path(run.data.tags["directory"], folder)
        with suppress(OSError, Held, RegistryUnavailable):
            seen = max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
            with exclusive(lock, what="the run"):
                store.set_tag(run.info.run_id, "status", "KILLED")
                _end(store, run, "KILLED", seen)


def _written(store: Store, session: Session, tags: dict[str, str]) -> Any:
    known = find_runs(store, f"tags.session = '{session.id}'")
    if not known:
        start = round(1000 * session.at) or None
        experiment = experiment_id(store)
        return store.create_run(experiment, start_time=start, run_name=session.id, tags=tags)
    for key, value in tags.items():
        if known[0].data.tags.get(key) != value:
            store.set_tag(known[0].info.run_id, key, value)
    return known[0]


def _end(store: Store, run: Any, status: str, at: float) -> None:
    # A clock that was set back would have it end before it began.
    end = max(run.info.start_time, round(1000 * (at or time.time())))
    store.set_terminated(run.info.run_id, STATUSES[status], end_time=end)


def record_handoff(store: Store, handoff: Handoff) -> None:
    """Add a hand-off."""
    if "/" in handoff.target:
        split_version(handoff.target)
    else:
        require_name("a hand-off's target", handoff.target)
    if handoff.verdict not in VERDICTS:
        raise InputError(f"verdict is {handoff.verdict!r}; expected one of {', '.join(VERDICTS)}")
    tags = {
        "handoff_source": handoff.source,
        "handoff_target": handoff.target,
        "verdict": handoff.verdict,
        "metrics": json.dumps(handoff.metrics, sort_keys=True),
    }
    run = store.create_run(experiment_id(store), run_name="handoff", tags=tags)
    store.set_terminated(run.info.run_id)


def read_handoffs(store: Store, source: str) -> list[Handoff]:
    """The hand-offs of a version, oldest first."""
    return [
        Handoff(
            source=run.data.tags["handoff_source"],
            target=run.data.tags["handoff_target"],
            verdict=run.data.tags["verdict"],
            metrics=json.loads(run.data.tags["metrics"]),
        )
        for run in find_runs(store, f"tags.handoff_source = '{source}'")
    ]


def read_metrics(store: Store, run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics by run, in few requests."""
    found = {}
    for start in range(0, len(run_ids), _CHUNK):
        names = ", ".join(f"'{run}'" for run in run_ids[start : start + _CHUNK])
        for run in find_runs(store, f"attributes.run_id IN ({names})"):
            found[run.info.run_id] = dict(run.data.metrics)
    return found


def find_runs(store: Store, condition: str) -> list[Any]:
    """The runs that meet a condition in MLflow's language, oldest first."""
    experiment, token, found = experiment_id(store), None, []
    while True:
        page = store.search_runs(
            [experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += list(page)
        token = page.token
        if not token:
            return found
