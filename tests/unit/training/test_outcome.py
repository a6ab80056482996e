"""How a run ended stands in a file: what each end is called, and what a launcher is told."""

import json
from pathlib import Path

import pytest
import torch.distributed

from distforge import cli
from distforge.errors import InputError, RunStopped
from distforge.training import outcome
from distforge.training.outcome import Outcome, tell_launcher, works_on

STATUSES = {"met": 0, "refused": 2, "missed": 3, "stopped": 75, "crashed": 1, "lost": 1}


@pytest.mark.parametrize(
    "error, ended, why",
    [
        (InputError("no data"), "refused", "no data"),
        (OSError(28, "full", "a"), "refused", "a: No space left on device; free space there"),
        (FloatingPointError("diverged"), "missed", "diverged"),
        (RunStopped("step 3 of 9 is saved"), "stopped", "step 3 of 9 is saved"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (KeyError("a\nb"), "crashed", "KeyError: 'a\\nb'"),
        (MemoryError(), "crashed", "MemoryError: "),
        (RuntimeError("CUDA out of memory\nmore"), "crashed", "RuntimeError: CUDA out of memory"),
        (RuntimeError("Connection closed by peer [10.0.0.1]:5"), "lost", None),
        (torch.distributed.DistNetworkError("gone"), "lost", None),
    ],
)
def test_of_an_error(error: BaseException, ended: str, why: str | None) -> None:
    found = Outcome.of_error(error)
    assert (found.ended, found.status) == (ended, STATUSES[ended])
    assert why in (None, found.why)


@pytest.mark.parametrize(
    "status, ended", [(0, "met"), (2, "refused"), (3, "missed"), (7, "crashed")]
)
def test_of_a_status(status: int, ended: str) -> None:
    assert Outcome.of_status(status).ended == ended


@pytest.fixture
def told(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DISTFORGE_OUTCOME", str(tmp_path / "told" / "outcome.json"))
    monkeypatch.setattr(outcome, "_latest_run", None)
    (tmp_path / "told").mkdir()
    return tmp_path / "told"


def test_a_launcher_is_told_how_far_the_run_is(told: Path, tmp_path: Path) -> None:
    for name, step in (("checkpoints", "step_9"), ("bakes/0/checkpoints", "step_4")):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "latest").write_text(f"{step}\n")
    works_on(tmp_path / "run")
    tell_launcher(Outcome("crashed", "KeyError: 'a'"))
    assert json.loads((told / "outcome.json").read_text()) == {
        "status": 1,
        "ended": "crashed",
        "why": "KeyError: 'a'",
        "run": str(tmp_path / "run"),
        "progress": "bakes/0/checkpoints/step_4 checkpoints/step_9",
    }


@pytest.mark.parametrize(
    "ended, told_by_others",
    [("refused", True), ("crashed", True), ("met", False), ("stopped", False), ("lost", False)],
)
def test_other_ranks_tell_what_rank_0_cannot_know(
    told: Path, monkeypatch, ended: str, told_by_others: bool
) -> None:
    monkeypatch.setenv("RANK", "3")
    tell_launcher(Outcome(ended))  # type: ignore[arg-type]
    assert [p.name for p in told.iterdir()] == ["outcome.json.rank3"] * told_by_others


def test_the_first_rank_of_another_node_tells_its_own_disk(told: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "8")
    for local, names in (("1", []), ("0", ["outcome.json.node8"])):
        monkeypatch.setenv("LOCAL_RANK", local)
        tell_launcher(Outcome("missed"))
        assert [path.name for path in told.iterdir()] == names


def test_the_command_line_tells_it(told: Path, monkeypatch, capsys) -> None:
    assert cli.main(["nonsense"]) == 2
    assert json.loads((told / "outcome.json").read_text())["ended"] == "refused"
    assert cli.main(["--version"]) == 0
    assert json.loads((told / "outcome.json").read_text())["ended"] == "met"

    def fail(words: list[str]) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "_dispatch", fail)
    with pytest.raises(KeyError):
        cli.main([])
    assert json.loads((told / "outcome.json").read_text())["why"] == "KeyError: 'a bug'"


def test_where_it_cannot_be_written_the_run_ends_as_it_does(monkeypatch, caplog) -> None:
    monkeypatch.setenv("DISTFORGE_OUTCOME", "/nonexistent/outcome.json")
    assert cli.main(["--version"]) == 0
    assert "cannot be written" in caplog.text
