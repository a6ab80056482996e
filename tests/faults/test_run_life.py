"""A run's directory: nothing that was worked for is lost, whoever comes and whatever fails."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from distforge.baking.supervised.trainer import PromptBakingTrainer
from distforge.cli import main
from distforge.data import make_examples, write_splits
from distforge.errors import InputError
from distforge.registry import ModelRegistry
from distforge.registry.manifest import verify_manifest
from distforge.training import run_directory
from distforge.training.distributed import World
from distforge.training.run_directory import locked
from tests.distributed.harness import run_ranks
from tests.faults.test_stop_signal import bake, digest

# Of the tiny run, a checkpoint's files are larger than this and notes smaller.
SMALL_FILE = 20_000


def say(words: list[str]) -> tuple[int, str]:
    """Exit status and what was said, of ``distforge bake`` in this process."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return main(["bake", *words]), said.getvalue()


def bake_once(world: World, words: list[str]) -> tuple[int, str]:
    run_directory._WAIT_SECONDS = 0.0
    return say(words)


def bake_differently(world: World, words: list[str]) -> tuple[int, str]:
    return say([*words, "--seed", str(world.rank)])


def bake_until_the_disk_is_full(world: World, words: list[str]) -> tuple[int, str]:
    genuine = PromptBakingTrainer._after_step

    def fill(trainer, record):
        if trainer.loop.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, resource.RLIM_INFINITY))
        genuine(trainer, record)

    PromptBakingTrainer._after_step = fill
    return say(words)


def bake_a_day_earlier(world: World, words: list[str]) -> tuple[int, str]:
    genuine = time.time
    time.time = lambda: genuine() - 86_400
    return say(words)


def bake_without_a_report(world: World, words: list[str]) -> tuple[int, str]:
    from distforge.baking import publish

    def fail(_: Path) -> None:
        raise InputError("metrics.jsonl is malformed")

    publish.write_report = fail
    return say(words)


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    words = ["--config", str(config), "--output", str(output)]
    assert run_ranks(1, bake, words, 0, 0, 0) == [3]
    return output / "tiny"


@pytest.fixture
def words(config: Path, tmp_path: Path) -> list[str]:
    return ["--config", str(config), "--output", str(tmp_path)]


def outcome(run: Path) -> dict[str, object]:
    return json.loads((run / "outcome.json").read_text())


def test_a_disk_that_fills_up_later_loses_nothing(words, finished: Path, tmp_path: Path) -> None:
    [(status, said)] = run_ranks(1, bake_until_the_disk_is_full, words)
    run = tmp_path / "tiny"
    assert (status, len(said.splitlines())) == (2, 1), said
    assert "cannot be written" in said
    verify_manifest(run / "checkpoints" / "step_3")
    assert outcome(run)["ended"] == "refused"
    assert str(outcome(run)["why"]) in said
    assert run_ranks(1, bake, words, 0, 0, 0) == [3]
    assert digest(run) == digest(finished)
    assert (outcome(run)["ended"], outcome(run)["status"]) == ("missed", 3)


def test_a_report_that_fails_loses_nothing(words, finished: Path, tmp_path: Path) -> None:
    # Its goal is missed, as without that: a report is made again by `distforge report`.
    assert run_ranks(1, bake_without_a_report, words)[0][0] == 3
    assert (tmp_path / "tiny" / "summary.json").exists()
    assert digest(tmp_path / "tiny") == digest(finished)


def test_a_clock_that_goes_backwards_changes_nothing(words, finished: Path, tmp_path: Path) -> None:
    words += ["--registry.enabled"]
    assert run_ranks(1, bake, words, 5, 0, signal.SIGTERM) == [75]
    [(status, said)] = run_ranks(1, bake_a_day_earlier, words)
    assert status == 3, said
    assert digest(tmp_path / "tiny") == digest(finished)
    [session] = ModelRegistry(tmp_path / "registry.db").sessions()
    assert (session.status, sorted(session.checkpoints)) == ("FINISHED", [6, 8])


def test_a_directory_of_a_newer_distforge_is_refused_and_stays(words, tmp_path: Path) -> None:
    assert run_ranks(1, bake, words, 5, 0, signal.SIGTERM) == [75]
    record = tmp_path / "tiny" / "identity.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    [(status, said)] = run_ranks(1, bake_once, [*words, "--resume", "force"])
    assert (status, len(said.splitlines())) == (2, 1)
    assert "was written by a newer distforge, in form 99" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_process_gets_one_sentence(words, tmp_path: Path) -> None:
    with locked(tmp_path / "tiny"):
        [(status, said)] = run_ranks(1, bake_once, words)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert f"{tmp_path / 'tiny'} is in use by process {os.getpid()} on " in said
    assert list(tmp_path.iterdir()) == []


def test_ranks_with_unlike_configurations_are_refused(words, tmp_path: Path) -> None:
    answers = run_ranks(2, bake_differently, words)
    assert [status for status, _ in answers] == [2, 2]
    assert "rank 1 has another configuration" in answers[0][1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", ["training data", "champion"])
def test_what_changed_between_stop_and_resume_is_refused(
    words, config: Path, tmp_path: Path, changed: str
) -> None:
    data, champion = tmp_path / "data", tmp_path / "champion"
    write_splits(make_examples(140, 0), data)
    shutil.copytree(config.parent / "champion", champion)
    words += ["--data.path", str(data), "--champion.path", str(champion)]
    assert run_ranks(1, bake, words, 5, 0, signal.SIGTERM) == [75]
    if changed == "champion":
        weights = load_file(champion / "model.safetensors")
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, champion / "model.safetensors", metadata={"format": "pt"})
    else:
        write_splits(make_examples(140, 1), data)
    words += ["--resume", "auto"]
    [(status, said)] = run_ranks(1, bake_once, words)
    assert (status, len(said.splitlines())) == (2, 1)
    assert f"started from another {changed} (" in said
    assert (tmp_path / "tiny" / "checkpoints" / "step_5").exists()
    assert run_ranks(1, bake, [*words, "--resume", "force"], 0, 0, 0) == [3]
    assert len(json.loads((tmp_path / "tiny" / "identity.json").read_text())["forced"]) == 1


def test_replace_keeps_the_finished_run_until_the_new_one_is(
    words, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "tiny")
    words += ["--existing", "replace"]
    assert run_ranks(1, bake, words, 5, 0, signal.SIGTERM) == [75]
    assert digest(tmp_path / ".tiny.previous") == digest(finished)
    assert not (run / "summary.json").exists()
    words += ["--resume", "auto"]
    assert run_ranks(1, bake, words, 0, 0, 0) == [3]
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}
    assert json.loads((run / "summary.json").read_text())["model_dir"] == str(run / "model")
    assert digest(run) == digest(finished)


def test_a_finished_run_that_is_started_again_says_so(
    words, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    words += ["--existing", "replace", "--resume", "auto"]
    assert run_ranks(2, bake, words, 0, 0, 0) == [3, 3]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}
