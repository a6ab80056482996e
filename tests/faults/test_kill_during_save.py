"""SIGKILL inside a save, for real, in a process of its own: what is resumed is always whole."""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from distforge import durable
from distforge.registry import manifest
from distforge.training import backends, checkpoint, engine, shards, signing
from distforge.training.checkpoint import begin_checkpoint, find_latest, load_state
from distforge.training.distributed import World
from tests.distributed.harness import _CONTEXT
from tests.training_cases import engine_config, make_engine, train, weights

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
DEADLINE = 60
SAVING = (backends, checkpoint, durable, engine, manifest, shards, signing)
WATCHED = {module.__file__ for module in SAVING}
# Lines of a save at which the process is killed (the first visit of each), and kills at random.
BY_DAY, BY_NIGHT = 8, 40
RANDOM_BY_DAY, RANDOM_BY_NIGHT = 4, 20
FLOATS = 3_000_000

Weights = dict[str, torch.Tensor]


def trained(root: Path, line_hook: Callable[[tuple[str, int]], None]) -> dict[int, Weights]:
    """Two steps; checkpoint 1, then 2 in its place (so that 1 is removed), watched by the hook."""
    ours = make_engine(WORLD, engine_config(backend="plain"))
    train(ours, WORLD, range(1))
    first = weights(ours)
    begin_checkpoint(root, 1, ours.save, {"step": 1}, WORLD, keep_last=1).finish()
    train(ours, WORLD, range(1, 2))

    def trace(frame, event, _argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            line_hook((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    begin_checkpoint(root, 2, ours.save, {"step": 2}, WORLD, keep_last=1).finish()
    sys.settrace(None)
    return {1: first, 2: weights(ours)}


def list_lines(root: Path, sender: Connection) -> None:
    lines: dict[tuple[str, int], None] = {}
    expected = trained(root, lines.setdefault)
    # Plain pickle: multiprocessing's own would pass tensors as handles that die with the process.
    sender.send_bytes(pickle.dumps((list(lines), expected)))


def die_at(root: Path, moment: tuple[str, int]) -> None:
    def kill(line: tuple[str, int]) -> None:
        if line == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(root, kill)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory):
    """The lines of a save in the order they are first run, and the weights at each step."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=list_lines, args=(tmp_path_factory.mktemp("all"), sender))
    process.start()
    assert receiver.poll(DEADLINE), "the unbroken save did not end"
    found = pickle.loads(receiver.recv_bytes())
    process.join(DEADLINE)
    return found


@pytest.mark.parametrize("kills", [BY_DAY, pytest.param(BY_NIGHT, marks=pytest.mark.nightly)])
def test_killed_at_any_line_of_a_save(tmp_path: Path, unbroken, kills: int) -> None:
    lines, expected = unbroken
    moments = lines[:: max(1, len(lines) // kills)]
    assert len(moments) >= kills // 2
    resumed = make_engine(WORLD, engine_config(backend="plain"))
    seen = []
    for number, moment in enumerate(moments):
        root = tmp_path / str(number)
        process = _CONTEXT.Process(target=die_at, args=(root, moment))
        process.start()
        process.join(DEADLINE)
        assert process.exitcode == -signal.SIGKILL, moment
        latest = find_latest(root)
        assert latest is not None, moment
        resumed.load(latest)
        step = load_state(latest)["step"]
        assert latest.name == f"step_{step}"
        ours = weights(resumed)
        assert all(torch.equal(ours[name], value) for name, value in expected[step].items())
        # And the next save is not in the way of what the dead one left.
        begin_checkpoint(root, 3, resumed.save, {"step": 3}, WORLD, keep_last=1).finish()
        assert find_latest(root) == root / "step_3"
        assert {path.name for path in root.iterdir()} == {"step_3", "latest"}
        seen.append(step)
    assert set(seen) == {1, 2}, "kills fell before and after the rename"


def save_for_ever(root: Path, sender: Connection) -> None:
    step = 0
    while True:
        step += 1
        content = torch.full((FLOATS,), float(step))

        def write(directory: Path, content: torch.Tensor = content) -> None:
            torch.save(content, directory / "weights.pt")

        begin_checkpoint(root, step, write, {"step": step}, WORLD).finish()
        if step == 1:
            sender.send(step)


@pytest.mark.parametrize(
    "kills", [RANDOM_BY_DAY, pytest.param(RANDOM_BY_NIGHT, marks=pytest.mark.nightly)]
)
def test_killed_at_random_times(tmp_path: Path, kills: int) -> None:
    rng = random.Random(0)
    corrupt = 0
    for number in range(kills):
        root = tmp_path / str(number)
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=save_for_ever, args=(root, sender))
        process.start()
        assert receiver.poll(DEADLINE), "the first save did not end"
        process.join(rng.uniform(0.0, 0.2))
        process.kill()
        process.join(DEADLINE)
        latest = find_latest(root)
        assert latest is not None
        step = load_state(latest)["step"]
        content = torch.load(latest / "weights.pt", weights_only=True)
        corrupt += latest.name != f"step_{step}" or not bool((content == step).all())
    assert corrupt == 0


def test_one_flipped_byte_in_any_file_falls_back(tmp_path: Path) -> None:
    trained_engine = make_engine(WORLD, engine_config(backend="plain"))
    for step in (1, 2):
        train(trained_engine, WORLD, range(step - 1, step))
        begin_checkpoint(tmp_path, step, trained_engine.save, {"step": step}, WORLD).finish()
    rng = random.Random(1)
    files = sorted(path for path in (tmp_path / "step_2").rglob("*") if path.is_file())
    assert len(files) >= 5
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert find_latest(tmp_path) == tmp_path / "step_1", path.name
        path.write_bytes(whole)
    assert find_latest(tmp_path) == tmp_path / "step_2"
