"""A run's record: one session across resumes, and nothing of it reaches the run."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge import durable
from distforge.errors import InputError, RunStopped
from distforge.registry import ModelRegistry, RegistryConfig, write_manifest
from distforge.registry.publisher import Publisher
from distforge.registry.spool import Spool
from distforge.training import run_record
from distforge.training.distributed import World
from distforge.training.keeping import drop_checkpoints
from distforge.training.run_record import RunRecord
from tests.registry_template import migrate
from tests.shared import build_once

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "a"
    made.mkdir(parents=True)
    shutil.copy(build_once("registry", migrate) / "registry.db", made.parent / "registry.db")
    return made


def record(directory: Path, **config: Any) -> RunRecord:
    return RunRecord(RegistryConfig(**config), directory, 3, 1, ALONE)


def save(directory: Path, step: int) -> Path:
    path = directory / "checkpoints" / f"step_{step}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(str(step))
    write_manifest(path)
    return path


def make_model(directory: Path) -> dict[str, Any]:
    path = directory / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return {"phase": 3, "step": 1, "model_type": "baked", "model_path": path, "metadata": {}}


def end_by(error: BaseException, ours: RunRecord, checkpoint: Path) -> None:
    with ours:
        ours.start()
        ours.checkpoint(3, checkpoint)
        raise error


def test_a_resumed_run_is_one_session_on_whatever_host(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(directory)
    with pytest.raises(RunStopped):
        end_by(RunStopped(), first, save(directory, 3))
    monkeypatch.setattr(run_record.socket, "gethostname", lambda: "another-host")
    with record(directory) as second:
        second.start()
        second.checkpoint(6, save(directory, 6))
        shutil.rmtree(directory / "checkpoints" / "step_3")
        second.checkpoint(8, save(directory, 8))
        assert second.register(make_model(directory)) == ["baked/1"]
    registry = ModelRegistry(directory.parent / "registry.db")
    [session] = registry.sessions()
    assert (session.status, session.host) == ("FINISHED", "another-host")
    assert sorted(session.checkpoints) == [6, 8]
    assert registry.get("baked/1").tags["session"] == session.id


def test_checkpoints_that_are_dropped_are_listed_no_longer(directory: Path) -> None:
    with record(directory) as ours:
        ours.start()
        for step in (3, 6):
            ours.checkpoint(step, save(directory, step))
        drop_checkpoints(directory, ours)
    [session] = ModelRegistry(directory.parent / "registry.db").sessions()
    assert (session.status, session.checkpoints) == ("FINISHED", {})
    assert list((directory / "checkpoints").iterdir()) == []


def test_a_refused_run_leaves_nothing(directory: Path) -> None:
    with pytest.raises(InputError, match="bad data"), record(directory):
        raise InputError("bad data")
    assert list(directory.iterdir()) == []
    with pytest.raises(InputError, match="is of no known kind"):
        record(directory, uri="ftp://models")


def fail(code: int) -> Callable[..., Any]:
    def call(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


CALLS: dict[str, tuple[object, str]] = {
    "flock": (fcntl, "flock"),
    "fsync": (os, "fsync"),
    "append": (durable.AppendOnly, "write"),
    "write_text": (durable, "write_text"),
    "mkdir": (Path, "mkdir"),
    "iterdir": (Path, "iterdir"),
    "manifest": (run_record, "manifest_id"),
    "publisher": (run_record, "Publisher"),
    "thread": (Publisher, "flush"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOLCK, errno.EIO])
def test_no_failing_call_reaches_the_run_or_masks_its_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path, model = save(directory, 3), make_model(directory)
    monkeypatch.setattr(*CALLS[call], fail(code))
    with record(directory, wait_seconds=0.0) as ours:
        ours.start()
        ours.checkpoint(3, path)
        assert len(ours.register(model)) == 1
    with pytest.raises(ZeroDivisionError):
        end_by(ZeroDivisionError(), record(directory, wait_seconds=0.0), path)


def test_after_a_full_disk_recording_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), record(directory) as ours:
        ours.start()
        with monkeypatch.context() as full:
            full.setattr(durable.AppendOnly, "write", fail(errno.ENOSPC))
            ours.checkpoint(3, save(directory, 3))
        ours.checkpoint(6, save(directory, 6))
    spool = Spool(directory.parent / "registry.spool.jsonl")
    assert caplog.text.count(f"records for {spool.path} are kept in memory") == 1
    noted = [json.loads(line) for line in spool.path.read_text().splitlines()]
    states = [entry for entry in noted if entry.get("op") == "session"]
    assert [sorted(map(int, s["checkpoints"])) for s in states] == [[], [3], [3, 6], []]
    assert spool.pending() == []


def test_what_nothing_took_is_counted(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(durable.AppendOnly, "write", fail(errno.ENOSPC))
    monkeypatch.setattr(Publisher, "_attempt", lambda _self: False)
    with caplog.at_level(logging.WARNING), record(directory, wait_seconds=0.0) as ours:
        ours.start()
    assert "2 records for the registry could neither be sent nor written" in caplog.text


def test_a_checkpoint_that_could_not_be_read_is_listed_when_the_run_ends(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = OSError(errno.EIO, "manifest.json")
    with record(directory) as ours:
        ours.start()
        with monkeypatch.context() as patch:
            patch.setattr(run_record, "manifest_id", lambda path: (_ for _ in ()).throw(fail))
            ours.checkpoint(3, save(directory, 3))
    (session,) = ModelRegistry(directory.parent / "registry.db").sessions()
    assert sorted(session.checkpoints) == [3]


def test_that_checkpoints_are_gone_is_said_when_the_run_ends_if_not_before(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with record(directory) as ours:
        ours.start()
        saved = save(directory, 3)
        ours.checkpoint(3, saved)
        shutil.rmtree(saved)
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "session", lambda *_: (_ for _ in ()).throw(OSError("full")))
            ours.no_checkpoints(saved.parent)
    (session,) = ModelRegistry(directory.parent / "registry.db").sessions()
    assert session.checkpoints == {}


def test_metrics_reach_the_page_while_the_run_goes_on(directory: Path) -> None:
    metrics = directory / "metrics.jsonl"
    line = '{"step": %d, "time": "2026-01-01T00:00:00.000Z", "seconds": 1.0, "train/loss": 2.5}\n'
    with record(directory) as ours:
        ours.start()
        metrics.write_text(line % 1 + (line % 2)[:20])  # the second is being written
        assert ours._publisher is not None
        assert ours._publisher.flush(60.0)
        metrics.write_text(line % 1 + line % 2)
    noted = [json.loads(x) for x in (directory.parent / "registry.spool.jsonl").open()]
    parts = [(e["begin"], e["end"]) for e in noted if e.get("op") == "curves"]
    assert parts == [(0, len(line % 1)), (len(line % 1), len(line % 1 + line % 2))]
