"""One keeper for every trainer, driven by a trainee that writes down what it is asked."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.errors import InputError, RunStopped
from distforge.registry.manifest import verify_manifest, write_manifest
from distforge.training import checkpoint, keeping
from distforge.training.checkpoint import load_state, trust_checkpoints, verify_checkpoint
from distforge.training.distributed import World
from distforge.training.keeping import Keeper
from distforge.training.kept import Best
from tests.tiny_models import tiny_llama, tiny_tokenizer

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


class Counter:
    """A trainer and its engine: the weights are a number, one more after each step."""

    def __init__(self) -> None:
        self.weights = 0
        self.evaluated: list[int] = []

    def evaluate(self, step: int) -> None:
        self.evaluated.append(step)

    def save(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.weights))

    def load(self, directory: Path) -> None:
        self.weights = int((directory / "weights").read_text())

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated": self.evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluated = state["evaluated"]


def keeper(directory: Path | None, evaluate_every: int = 4, checkpoint_every: int = 3):
    trainee = Counter()
    return trainee, Keeper(trainee, trainee, directory, WORLD, evaluate_every, checkpoint_every)


def train(trainee: Counter, kept: Keeper, total: int, told_at: int = 0) -> None:
    with kept.stopping_between_steps():
        while kept.step < total:
            trainee.weights += 1
            if trainee.weights == told_at:
                signal.raise_signal(signal.SIGTERM)
            kept.after_step(trainee.weights, total)


def saved_steps(directory: Path) -> set[str]:
    return {path.name for path in (directory / "checkpoints").iterdir() if path.is_dir()}


def test_what_is_due_is_done_and_the_last_step_is_due_for_both(tmp_path):
    trainee, kept = keeper(tmp_path)
    train(trainee, kept, 10)
    assert trainee.evaluated == [4, 8, 10]
    assert saved_steps(tmp_path) == {"step_9", "step_10"}
    assert not kept.evaluation_due


def test_without_checkpoints_only_a_stop_saves(tmp_path):
    trainee, kept = keeper(tmp_path, checkpoint_every=0)
    train(trainee, kept, 5)
    assert not (tmp_path / "checkpoints").exists()
    trainee, kept = keeper(tmp_path, checkpoint_every=0)
    with pytest.raises(RunStopped, match="step 2 of 5 is saved"):
        train(trainee, kept, 5, told_at=2)
    assert saved_steps(tmp_path) == {"step_2"}


@pytest.mark.parametrize("told_at", [1, 4, 6, 8])
def test_who_is_told_to_stop_saves_first_and_evaluates_when_resumed(tmp_path, told_at):
    trainee, kept = keeper(tmp_path)
    with pytest.raises(RunStopped):
        train(trainee, kept, 8, told_at)
    assert told_at not in trainee.evaluated
    resumed, again = keeper(tmp_path)
    assert again.resume()
    assert (resumed.weights, again.step) == (told_at, told_at)
    assert again.evaluation_due is (told_at in (4, 8))
    if again.evaluation_due:
        again.evaluate()
    train(resumed, again, 8)
    assert resumed.evaluated == [4, 8]


@pytest.fixture
def slow_hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Every checkpoint counts as large, and none is hashed before the event is set."""
    may_hash, hash_file = threading.Event(), checkpoint.measure_file

    def wait_and_hash(*arguments: Any) -> Any:
        assert may_hash.wait(60)
        return hash_file(*arguments)

    monkeypatch.setattr(keeping, "_WORTH_DEFERRING_BYTES", 0)
    monkeypatch.setattr(checkpoint, "measure_file", wait_and_hash)
    yield may_hash
    may_hash.set()


class Record:
    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def checkpoint(self, step: int, directory: Path) -> None:
        verify_checkpoint(directory)
        self.told.append((step, directory.name))


def take_steps(trainee: Counter, kept: Keeper, steps: range) -> None:
    for trainee.weights in steps:
        kept.after_step(trainee.weights, 100)


def test_training_goes_on_while_a_large_checkpoint_is_hashed(tmp_path, slow_hashing):
    trainee, record = Counter(), Record()
    kept = Keeper(trainee, trainee, tmp_path, WORLD, 100, 3, record)
    take_steps(trainee, kept, range(1, 6))
    assert saved_steps(tmp_path) == {"step_3.tmp"}
    assert record.told == []
    slow_hashing.set()
    deadline = time.monotonic() + 60
    while not record.told and time.monotonic() < deadline:
        trainee.weights += 1
        kept.after_step(5, 100)
    assert record.told == [(3, "step_3")]
    again, resumed = keeper(tmp_path)
    assert resumed.resume()
    assert (again.weights, resumed.step) == (3, 3)


def test_the_next_checkpoint_and_the_last_step_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "_WORTH_DEFERRING_BYTES", 0)
    trainee, record = Counter(), Record()
    kept = Keeper(trainee, trainee, tmp_path, WORLD, 100, 3, record)
    train(trainee, kept, 7)
    assert record.told == [(step, f"step_{step}") for step in (3, 6, 7)]
    assert saved_steps(tmp_path) == {"step_6", "step_7"}


def test_an_error_in_training_leaves_a_large_checkpoint_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "_WORTH_DEFERRING_BYTES", 0)
    trainee, kept = keeper(tmp_path)

    def fail() -> None:
        with kept.stopping_between_steps():
            take_steps(trainee, kept, range(1, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert saved_steps(tmp_path) == {"step_3"}


def test_a_disk_that_is_full_when_it_is_flushed_is_said_between_steps(tmp_path, monkeypatch):
    trainee, kept = keeper(tmp_path)
    train(trainee, kept, 3)

    def full(directory: Path, name: str) -> None:
        raise OSError(28, "No space left on device", str(directory / name))

    monkeypatch.setattr(keeping, "_WORTH_DEFERRING_BYTES", 0)
    monkeypatch.setattr(checkpoint, "measure_file", full)
    take_steps(trainee, kept, range(6, 7))
    with pytest.raises(InputError, match=r"step_6 cannot be written \(No space left"):
        take_steps(trainee, kept, range(7, 10))
    assert saved_steps(tmp_path) == {"step_3"}


def test_the_best_weights_survive_a_resume_and_are_taken_with_a_manifest(tmp_path):
    trainee, kept = keeper(tmp_path)
    assert kept.is_best(-1.0)
    kept.step = 2
    kept.keep(0.5, tiny_llama(300), tiny_tokenizer())
    assert kept.best == Best(2, 0.5)
    assert (kept.is_best(0.5), kept.is_best(0.6)) == (False, True)
    trainee.weights = 2
    train(trainee, kept, 3)
    _, again = keeper(tmp_path)
    again.resume()
    assert again.best == Best(2, 0.5)
    # A run that was killed while it took them left a directory without them all.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "half").write_text("")
    again.take_best(tmp_path / "model")
    verify_manifest(tmp_path / "model")
    assert not (tmp_path / "model" / "half").exists()
    assert not (tmp_path / "best").exists()


class Judged(Counter):
    """Its weights are judged after every step; ``script`` says what comes of each verdict in turn.

    The higher its weights the better they are, in what is kept as the best too.
    """

    def __init__(self, script: str, directory: Path) -> None:
        super().__init__()
        self.script, self.looks, self.directory = script, 0, directory
        self.kept = Keeper(self, self, directory, WORLD, 1, 1, judged=self)

    def evaluate(self, step: int) -> None:
        if self.kept.is_best(self.weights):
            self.kept.best = Best(step, self.weights)
            (self.directory / "best").mkdir(parents=True, exist_ok=True)
            (self.directory / "best" / "weights").write_text(str(self.weights))

    def is_verdict_due(self, step: int) -> bool:
        return True

    def judge(self, step: int) -> None:
        self.looks += 1
        {"pin": self.kept.pin, "back": self.kept.go_back, "on": lambda: None}[
            self.script.split()[self.looks - 1]
        ]()

    def lasting_state(self) -> dict[str, Any]:
        return {"looks": self.looks}

    def load_lasting_state(self, state: dict[str, Any]) -> None:
        self.looks = state["looks"]

    def run(self, looks: int, told_at: int = 0) -> Judged:
        """Train until so many verdicts were given; the step told to stop is of all taken."""
        with self.kept.stopping_between_steps():
            while self.looks < looks:
                self.weights += 1
                if told_at and self.kept.taken + 1 == told_at:
                    signal.raise_signal(signal.SIGTERM)
                self.kept.after_step(self.kept.step + 1, 100)
        return self

    @property
    def is_at(self) -> tuple[int, int, int]:
        """Weights, steps, and steps in all."""
        return self.weights, self.kept.step, self.kept.taken

    @property
    def best_on_disk(self) -> str:
        return (self.directory / "best" / "weights").read_text()


def test_the_last_pin_is_kept_and_those_before_are_released(tmp_path):
    run = Judged("pin on on on pin on on on", tmp_path).run(4)
    assert saved_steps(tmp_path) == {"step_1", "step_3", "step_4"}
    run.run(5)
    # The checkpoint before the last still goes back to the first pin.
    assert saved_steps(tmp_path) == {"step_1", "step_4", "step_5"}
    run.run(8)
    assert saved_steps(tmp_path) == {"step_5", "step_7", "step_8"}


def test_going_back_restores_weights_and_the_best_and_counts_on(tmp_path):
    run = Judged("pin on pin on back on back on", tmp_path).run(5)
    assert run.is_at == (3, 3, 5)
    assert run.kept.best == Best(3, 3.0)
    assert run.best_on_disk == "3"
    assert saved_steps(tmp_path) == {"step_3", "step_4", "step_5"}
    assert load_state(tmp_path / "checkpoints" / "step_5")["step"] == 3
    run.run(7)  # the same pin once more
    assert run.is_at == (3, 3, 7)
    run.run(8)
    assert run.is_at == (4, 4, 8)
    assert (run.kept.best, run.best_on_disk) == (Best(4, 4.0), "4")


@pytest.mark.parametrize("looks", range(1, 9))
def test_a_judged_run_resumes_from_any_step(tmp_path, looks):
    script = "pin on pin on back on back on pin"
    Judged(script, tmp_path).run(looks)
    resumed = Judged(script, tmp_path)
    assert resumed.kept.resume()
    straight = Judged(script, tmp_path / "straight").run(9)
    resumed.run(9)
    assert (resumed.is_at, resumed.kept.best) == (straight.is_at, straight.kept.best)
    assert resumed.best_on_disk == straight.best_on_disk
    assert resumed.kept.pinned == straight.kept.pinned


def test_who_is_told_to_stop_is_judged_when_resumed(tmp_path):
    script = "pin on back on"
    with pytest.raises(RunStopped, match="step 3 of 100 is saved"):
        Judged(script, tmp_path).run(4, told_at=3)
    resumed = Judged(script, tmp_path)
    resumed.kept.resume()
    assert (resumed.kept.verdict_due, resumed.is_at) == (True, (3, 3, 3))
    resumed.kept.settle()
    assert resumed.is_at == (1, 1, 3)
    assert load_state(tmp_path / "checkpoints" / "step_3")["step"] == 1


def test_where_the_newest_is_damaged_the_one_before_has_its_pin(tmp_path):
    Judged("pin on pin on back", tmp_path).run(3)
    (tmp_path / "checkpoints" / "step_3" / "weights").write_text("7")
    resumed = Judged("pin on back on", tmp_path)
    resumed.kept.resume()
    assert resumed.is_at == (2, 2, 2)
    resumed.run(3)
    assert resumed.is_at == (1, 1, 3)


def test_a_damaged_pin_is_an_error_that_names_it(tmp_path):
    run = Judged("pin on back", tmp_path).run(2)
    (tmp_path / "checkpoints" / "step_1" / "weights").write_text("7")
    with pytest.raises(
        InputError, match=r"cannot go back to .*step_1, which cannot be used \(.*weigh"
    ):
        run.run(3)
    assert run.is_at == (3, 3, 3)


class Average:
    """What a trainer has a checkpoint hold beside the engine's part."""

    loaded: tuple[str, int] | None = None

    def save(self, directory: Path) -> None:
        (directory / "average").write_text("half")

    def load(self, directory: Path, step: int) -> None:
        self.loaded = ((directory / "average").read_text(), step)


def test_what_lies_beside_the_engine_is_saved_and_read_with_its_step(tmp_path):
    trainee = Counter()
    train(trainee, Keeper(trainee, trainee, tmp_path, WORLD, 4, 3, beside=Average()), 3)
    average = Average()
    assert Keeper(trainee, trainee, tmp_path, WORLD, 4, 3, beside=average).resume()
    assert average.loaded == ("half", 3)


def test_in_memory_nothing_is_written_and_a_signal_is_not_caught(tmp_path):
    trainee, kept = keeper(None)
    assert not kept.resume()
    train(trainee, kept, 6)
    assert trainee.evaluated == [4, 6]
    # A shell starts what runs in its background with this signal ignored, the tests too.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), kept.stopping_between_steps():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize(
    ("old", "best", "due"),
    [
        ({"best": {"step": 2, "accuracy": 0.25}, "evaluation_due": True}, Best(2, 0.25), True),
        ({"best": {"step": 0, "score": -1.5}, "due": True}, Best(0, -1.5), True),
        ({"best": None, "due": False}, None, False),
        ({}, None, False),
    ],
    ids=["step 1", "step 2", "nothing kept yet", "a prompt bake"],
)
def test_checkpoints_from_before_there_was_one_keeper_are_read(tmp_path, old, best, due):
    trainee, kept = keeper(tmp_path)
    train(trainee, kept, 3)
    directory = tmp_path / "checkpoints" / "step_3"
    state = {"step": 3, "evaluated": load_state(directory)["evaluated"], **old}
    (directory / "state.json").write_text(json.dumps(state))
    write_manifest(directory)
    trust_checkpoints(directory.parent)
    _, again = keeper(tmp_path)
    assert again.resume()
    assert (again.step, again.best, again.evaluation_due) == (3, best, due)
