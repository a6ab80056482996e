"""A run's directory is claimed once; what belongs to somebody else is never touched."""

from pathlib import Path

import pytest
import torch

from distforge.errors import InputError
from distforge.training.distributed import World
from distforge.training.run_directory import RunDirectory, claim_run_directory

ALONE = World(0, 0, 1, torch.device("cpu"))


def claim(root: Path, identity: str = "a", existing: str = "resume", name: str = "x"):
    return claim_run_directory(str(root), name, "seed = 1\n", identity, existing, ALONE)  # type: ignore[arg-type]


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


def test_finished_run_is_refused_unless_replaced(tmp_path: Path) -> None:
    path = claim(tmp_path).path
    (path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="finished"):
        claim(tmp_path)
    assert claim(tmp_path, existing="replace").is_new
    assert not (path / "summary.json").exists()


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
    first.release(ALONE)
    assert not first.path.exists()
