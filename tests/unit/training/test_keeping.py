"""One keeper for every trainer, driven by a trainee that writes down what it is asked."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.errors import RunStopped
from distforge.registry.manifest import verify_manifest, write_manifest
from distforge.training.checkpoint import load_state
from distforge.training.distributed import World
from distforge.training.keeping import Best, Keeper
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
    with pytest.raises(KeyboardInterrupt), kept.stopping_between_steps():
        signal.raise_signal(signal.SIGINT)


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
    _, again = keeper(tmp_path)
    assert again.resume()
    assert (again.step, again.best, again.evaluation_due) == (3, best, due)
