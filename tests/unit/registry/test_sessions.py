"""Sessions as MLflow's own page has them, read back through its client."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from distforge.errors import InputError
from distforge.locks import exclusive
from distforge.registry import ModelRegistry, Session
from distforge.registry.records import SESSION_FILE
from tests.registry_template import migrate
from tests.shared import build_once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs"
    (made / "a").mkdir(parents=True)
    shutil.copy(build_once("registry", migrate) / "registry.db", made / "registry.db")
    return made


@pytest.fixture
def registry(folder: Path) -> ModelRegistry:
    return ModelRegistry(folder / "registry.db")


def session(folder: Path, status: str = "RUNNING", **changes: Any) -> Session:
    return Session("a-1", 3, 1, str(folder / "a"), "host", status, **changes)


def page(folder: Path) -> Any:
    """The one session's run, as MLflow has it."""
    uri = f"sqlite:///{folder / 'registry.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("distforge")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.session = 'a-1'")
    return client.get_run(run.info.run_id)


@pytest.mark.parametrize(
    "status, shown",
    [("FINISHED", "FINISHED"), ("FAILED", "FAILED"), ("STOPPED", "KILLED"), ("KILLED", "KILLED")],
)
def test_mlflow_has_the_status_and_the_times(
    folder: Path, registry: ModelRegistry, status: str, shown: str
) -> None:
    registry.record_session(session(folder, at=1000.0))
    assert page(folder).info.status == "RUNNING"
    registry.record_session(session(folder, status, at=1500.5))
    info = page(folder).info
    assert (info.status, info.start_time, info.end_time) == (shown, 1_000_000, 1_500_500)
    assert [s.status for s in registry.sessions()] == [status]


def test_a_resumed_session_runs_again_and_a_clock_set_back_ends_nothing_early(
    folder: Path, registry: ModelRegistry
) -> None:
    registry.record_session(session(folder, at=1000.0))
    registry.record_session(session(folder, "STOPPED", at=900.0))
    assert page(folder).info.end_time == 1_000_000
    registry.record_session(session(folder, at=800.0))
    assert page(folder).info.status == "RUNNING"
    assert len(registry.sessions()) == 1


def test_checkpoints_that_are_gone_are_listed_no_longer(
    folder: Path, registry: ModelRegistry
) -> None:
    where = {step: {"path": str(folder / "a" / str(step)), "manifest": "m"} for step in (3, 6, 8)}
    registry.record_session(session(folder, checkpoints={3: where[3]}))
    registry.record_session(session(folder, checkpoints={6: where[6]}))
    assert sorted(registry.sessions()[0].checkpoints) == [3, 6]
    registry.record_session(session(folder, checkpoints={8: where[8]}, retained=[6, 8]))
    registry.record_session(session(folder, "FINISHED"))
    assert registry.sessions()[0].checkpoints == {6: where[6], 8: where[8]}


def test_one_that_was_killed_is_ended_where_its_lock_is_free(
    folder: Path, registry: ModelRegistry
) -> None:
    lock = folder / ".a.lock"
    (folder / "a" / "metrics.jsonl").write_text("")
    os.utime(folder / "a" / "metrics.jsonl", (2e9, 2e9))  # the last to change
    seen = 2e9
    registry.record_session(session(folder, lock=str(lock), at=seen - 100))
    with exclusive(lock, what="the run"):
        assert [s.status for s in registry.sessions()] == ["RUNNING"]
    assert [s.status for s in registry.sessions()] == ["KILLED"]
    info = page(folder).info
    assert info.status == "KILLED"
    assert info.end_time == 1000 * seen


def test_one_that_cannot_be_seen_from_here_is_left_alone(
    folder: Path, registry: ModelRegistry
) -> None:
    away = folder / "away"
    changes = {"lock": str(folder / ".away.lock")}
    registry.record_session(Session("a-1", 3, 1, str(away), "host", "RUNNING", **changes))
    assert [s.status for s in registry.sessions()] == ["RUNNING"]


def lines(*losses: float) -> str:
    return "".join(
        json.dumps(
            {
                "step": step,
                "time": f"2026-01-01T00:00:{step:02d}.500Z",
                "seconds": 1.0,
                "train/loss": loss,
                "rl_detail/entropy": 1.0,
                "baking/accuracy_overall": "NaN",
            }
        )
        + "\n"
        for step, loss in enumerate(losses, start=1)
    )


def test_the_page_has_parameters_and_curves(folder: Path, registry: ModelRegistry) -> None:
    run = folder / "a"
    (run / SESSION_FILE).write_text("a-1\n")
    (run / "config.toml").write_text('name = "a"\n[optimizer]\nlr = 0.02\nbetas = [0.9, 0.99]\n')
    metrics = run / "metrics.jsonl"
    metrics.write_text(lines(3.0, 2.0) + "not JSON\n" + lines(3.0, 2.0, 1.5).splitlines()[2] + "\n")
    size, middle = metrics.stat().st_size, len(lines(3.0))
    registry.record_session(session(folder))
    registry.record_curves("a-1", metrics, 0, middle)
    for _ in range(2):  # what is sent again is there once
        registry.record_curves("a-1", metrics, middle, size)
        registry.record_curves("a-1", metrics, 0, middle)
    found = page(folder)
    expected = {"name": "a", "optimizer.lr": "0.02", "optimizer.betas": "[0.9, 0.99]"}
    assert found.data.params == expected
    assert set(found.data.metrics) == {"train/loss"}
    uri = f"sqlite:///{folder / 'registry.db'}"
    history = mlflow.MlflowClient(uri, uri).get_metric_history(found.info.run_id, "train/loss")
    points = sorted((m.step, m.value, m.timestamp) for m in history)
    first = 1767225600_000
    assert points == [(n, v, first + n * 1000 + 500) for n, v in ((1, 3.0), (2, 2.0), (3, 1.5))]


def test_curves_of_a_run_that_was_replaced_are_refused(
    folder: Path, registry: ModelRegistry
) -> None:
    registry.record_session(session(folder))
    metrics = folder / "a" / "metrics.jsonl"
    metrics.write_text(lines(3.0))
    (folder / "a" / SESSION_FILE).write_text("another-2\n")
    with pytest.raises(InputError, match="no longer that of the session a-1"):
        registry.record_curves("a-1", metrics, 0, 10)


def make_model(path: Path, weights: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_text(weights)
    return path


def test_a_folder_of_runs_is_moved_with_its_registry(folder: Path, registry: ModelRegistry) -> None:
    version = registry.register_model(3, 1, "baked", make_model(folder / "a" / "model", "w"))
    where = {"path": str(folder / "a" / "checkpoints" / "step_3"), "manifest": "m"}
    registry.record_session(session(folder, checkpoints={3: where}))
    moved = folder.rename(folder.with_name("moved"))
    registry = ModelRegistry(moved / "registry.db")
    assert registry.get(version).model_path == moved / "a" / "model"
    registry.verify(version)
    [found] = registry.sessions()
    assert found.directory == str(moved / "a")
    assert found.checkpoints[3]["path"] == str(moved / "a" / "checkpoints" / "step_3")


def test_relocate_corrects_absolute_paths_and_only_those(
    folder: Path, registry: ModelRegistry, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    inside = registry.register_model(3, 1, "baked", make_model(folder / "a" / "model", "w"))
    outside = registry.register_model(3, 1, "baked", make_model(old / "m", "v"))
    other = registry.register_model(3, 1, "baked", make_model(tmp_path / "older" / "m", "u"))
    where = {"path": str(old / "r" / "step_3"), "manifest": "m"}
    changes = {"checkpoints": {3: where}, "lock": str(old / "r" / "session.lock")}
    registry.record_session(Session("a-1", 3, 1, str(old / "r"), "host", "FINISHED", **changes))
    with pytest.raises(InputError, match="baked/2 is not at"):
        registry.relocate(old, new)
    assert registry.get(outside).model_path == old / "m"
    old.rename(new)
    assert registry.relocate(old, new, dry_run=True) == [outside, "a-1"]
    assert registry.get(outside).model_path == old / "m"
    assert registry.relocate(old, new) == [outside, "a-1"]
    assert registry.relocate(old, new) == []
    paths = [registry.get(v).model_path for v in (inside, outside, other)]
    assert paths == [folder / "a" / "model", new / "m", tmp_path / "older" / "m"]
    for version in (inside, outside, other):
        registry.verify(version)
    [found] = registry.sessions()
    assert found.directory == str(new / "r")
    assert found.checkpoints[3]["path"] == str(new / "r" / "step_3")
    assert registry.events is not None
    told = registry.events.read()[-1]
    assert (told["event"], told["changed"]) == ("relocate", [outside, "a-1"])
