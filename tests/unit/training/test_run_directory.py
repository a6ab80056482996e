"""A run's directory is held by one process; what was worked for, or is somebody's, is not lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distforge import durable
from distforge.errors import InputError
from distforge.locks import Held, Holder
from distforge.training import run_directory
from distforge.training.distributed import World
from distforge.training.previous import forget, previous
from distforge.training.run_directory import (
    Existing,
    Resume,
    RunDirectory,
    claim_run_directory,
    holding,
    locked,
    withdraw,
)

ALONE = World(0, 0, 1, torch.device("cpu"))


def claim(
    root: Path,
    identity: str = "a",
    existing: Existing = "resume",
    name: str = "x",
    resume: Resume = "off",
):
    return claim_run_directory(str(root), name, "seed = 1\n", identity, existing, ALONE, resume)


def finish(run: Path) -> None:
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "weights").write_text("trained for days")
    (run / "summary.json").write_text("{}")


def test_new_then_resumed(tmp_path: Path) -> None:
    first = claim(tmp_path)
    assert first == RunDirectory(tmp_path / "x", True)
    assert (first.path / "config.toml").read_text() == "seed = 1\n"
    (first.path / "work").write_text("kept")
    assert claim(tmp_path) == RunDirectory(tmp_path / "x", False)
    assert (first.path / "work").read_text() == "kept"


def test_a_kill_while_it_was_claimed_does_not_block_it(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.sha256.tmp").write_text("ha")
    path = claim(tmp_path).path
    assert {p.name for p in path.iterdir()} == {"config.sha256", "config.toml"}


def test_a_finished_run_is_kept_until_what_replaces_it_has_ended(tmp_path: Path) -> None:
    path = claim(tmp_path).path
    finish(path)
    with pytest.raises(InputError, match="finished"):
        claim(tmp_path)
    assert claim(tmp_path, existing="replace").is_new
    assert not (path / "summary.json").exists()
    kept = previous(path) / "model" / "weights"
    assert kept.read_text() == "trained for days"
    # Begun over and over, the finished one stays what is kept.
    (path / "checkpoints").mkdir()
    assert claim(tmp_path, existing="replace").is_new
    assert not (path / "checkpoints").exists()
    assert kept.read_text() == "trained for days"
    forget(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_replaced_comes_back_where_the_new_one_never_began(tmp_path: Path) -> None:
    path = claim(tmp_path).path
    finish(path)
    claim(tmp_path, existing="replace").release(ALONE)
    assert (path / "model" / "weights").read_text() == "trained for days"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def kill_between_the_old_and_the_new_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Path, "mkdir", lambda *_, **__: os._exit(9))
        child = os.fork()
        if child == 0:
            claim(path.parent, existing="replace")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not path.exists()


def test_a_kill_between_the_old_and_the_new_one_leaves_the_old(tmp_path: Path, monkeypatch) -> None:
    path = claim(tmp_path).path
    finish(path)
    kill_between_the_old_and_the_new_one(path, monkeypatch)
    with pytest.raises(InputError, match="finished"):
        claim(tmp_path)
    assert (path / "model" / "weights").read_text() == "trained for days"


def test_started_again_what_had_not_begun_replaces_and_what_had_goes_on(
    tmp_path: Path, monkeypatch
) -> None:
    path = claim(tmp_path).path
    finish(path)
    with pytest.raises(InputError, match="finished"):
        claim(tmp_path, existing="replace", resume="auto")
    kill_between_the_old_and_the_new_one(path, monkeypatch)
    assert claim(tmp_path, existing="replace", resume="auto").is_new
    (path / "checkpoints").mkdir()
    assert not claim(tmp_path, existing="replace", resume="auto").is_new
    assert (path / "checkpoints").is_dir()
    assert (previous(path) / "model" / "weights").read_text() == "trained for days"


@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_other_runs_and_other_things_are_refused(tmp_path: Path, existing: str) -> None:
    claim(tmp_path, "a")
    with pytest.raises(InputError, match="another run"):
        claim(tmp_path, "b", existing)
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis").write_text("x")
    with pytest.raises(InputError, match="not a run of distforge"):
        claim(tmp_path, existing=existing, name="mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a run of distforge"):
        claim(tmp_path, existing=existing, name="file")
    assert (foreign / "thesis").read_text() == "x"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".x", "a b", "-x", "x" * 101])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        claim(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_release_removes_only_what_was_made(tmp_path: Path) -> None:
    first = claim(tmp_path)
    claim(tmp_path).release(ALONE)
    assert first.path.exists()
    # What is opened before anything is done, or can be made again at once.
    (first.path / "metrics.jsonl").touch()
    for name in ("wandb", "champion"):
        (first.path / name).mkdir()
    first.release(ALONE)
    assert not first.path.exists()


@pytest.mark.parametrize(
    "work", ["checkpoints", "model", "bakes", "best", "metrics.jsonl", "screened.json", "notes.txt"]
)
def test_release_removes_nothing_that_was_worked_for(tmp_path: Path, work: str) -> None:
    first = claim(tmp_path)
    (first.path / work).write_text("hours of work")
    first.release(ALONE)
    assert (first.path / work).read_text() == "hours of work"


def test_two_processes_cannot_hold_one_directory(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with (
        holding(runs / "x", ALONE),
        pytest.raises(InputError, match=rf"{runs / 'x'} is in use by process {os.getpid()} on"),
        locked(runs / "x"),
    ):
        pass
    assert not runs.exists(), "made for the lock alone"


@pytest.mark.parametrize(
    "host, is_again, waits",
    [("here", False, [5.0]), ("here", True, [5.0, 120.0]), ("dead", False, [5.0, 120.0])],
)
def test_waits_for_a_last_save_and_for_a_dead_host_s_lease(
    tmp_path: Path, monkeypatch, host: str, is_again: bool, waits: list[float]
) -> None:
    holder = replace(Holder.here(), **({"host": "gone"} if host == "dead" else {}))
    waited = []

    @contextmanager
    def held(_: Path, *, what: str, wait: float) -> Iterator[None]:
        waited.append(wait)
        raise Held(what, holder)
        yield

    monkeypatch.setattr(run_directory, "exclusive", held)
    with (
        pytest.raises(InputError, match=f"is in use by process {holder.pid} on {holder.host}"),
        holding(tmp_path / "x", ALONE, is_again=is_again),
    ):
        pass
    assert waited == waits


def test_a_directory_in_use_is_not_withdrawn_by_another(tmp_path: Path) -> None:
    path = claim(tmp_path).path
    with locked(path):
        withdraw(path)
        assert path.exists()
    withdraw(path)
    assert not path.exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "write_text", full)
    with pytest.raises(InputError, match=r"config\.sha256: No space left on device; remove that"):
        claim(tmp_path)
