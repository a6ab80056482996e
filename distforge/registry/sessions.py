"""Training sessions, hand-offs and metrics: what the registry keeps as MLflow runs.

A session's run has the tag ``session``, with its state in other tags; a hand-off's run the tag
``handoff_source``. Both lie beside the versions' runs, in the same experiment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from distforge.errors import InputError, require_name
from distforge.registry.records import (
    VERDICTS,
    Handoff,
    Session,
    require_counts,
    split_version,
)
from distforge.registry.store import Store, experiment_id

STATUSES = ("RUNNING", "FINISHED", "STOPPED", "FAILED")
_CHECKPOINT = "checkpoint.step_"
_CHUNK = 50


def record_session(store: Store, session: Session) -> None:
    """Write a session's state over what is known of it."""
    require_name("a session's id", session.id)
    require_counts(phase=session.phase, step=session.step)
    if session.status not in STATUSES:
        raise InputError(f"status is {session.status!r}; expected one of {', '.join(STATUSES)}")
    experiment = experiment_id(store)
    tags = {
        "session": session.id,
        "phase": str(session.phase),
        "step": str(session.step),
        "directory": session.directory,
        "host": session.host,
        "status": session.status,
    }
    for number, checkpoint in session.checkpoints.items():
        tags[f"{_CHECKPOINT}{number}"] = json.dumps(checkpoint, sort_keys=True)
    known = _runs(store, f"tags.session = '{session.id}'")
    if not known:
        store.create_run(experiment, run_name=session.id, tags=tags)
        return
    for key, value in tags.items():
        store.set_tag(known[0].info.run_id, key, value)


def read_sessions(store: Store) -> list[Session]:
    """All sessions, oldest first. Two of one id (recorded at once by two hosts) count as one."""
    found: dict[str, Session] = {}
    for run in _runs(store, "tags.session LIKE '%'"):
        tags = run.data.tags
        checkpoints = {
            int(key.removeprefix(_CHECKPOINT)): json.loads(value)
            for key, value in tags.items()
            if key.startswith(_CHECKPOINT)
        }
        earlier = found.get(tags["session"])
        found[tags["session"]] = Session(
            id=tags["session"],
            phase=int(tags["phase"]),
            step=int(tags["step"]),
            directory=tags["directory"],
            host=tags["host"],
            status=tags["status"],
            checkpoints={**(earlier.checkpoints if earlier else {}), **checkpoints},
        )
    return list(found.values())


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
        for run in _runs(store, f"tags.handoff_source = '{source}'")
    ]


def read_metrics(store: Store, run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics by run, in few requests."""
    found = {}
    for start in range(0, len(run_ids), _CHUNK):
        names = ", ".join(f"'{run}'" for run in run_ids[start : start + _CHUNK])
        for run in _runs(store, f"attributes.run_id IN ({names})"):
            found[run.info.run_id] = dict(run.data.metrics)
    return found


def _runs(store: Store, condition: str) -> list[Any]:
    experiment, token, found = experiment_id(store), None, []
    while True:
        page = store.search_runs(
            [experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += list(page)
        token = page.token
        if not token:
            return found
