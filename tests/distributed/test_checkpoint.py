"""Checkpoints that two ranks make together: resumed bitwise, and one failing rank fails all."""

import time
from pathlib import Path

import pytest
import torch

from distforge.training.checkpoint import begin_checkpoint, find_latest, load_state
from distforge.training.distributed import World
from tests.distributed.harness import RankFailure, run_ranks
from tests.training_cases import ADAMW, MUON, STEPS, engine_config, make_engine, train, weights


def train_and_save(world: World, stage: int, optimizer, root: Path):
    """All steps at once, with checkpoints after the second and the third."""
    engine = make_engine(world, engine_config(zero_stage=stage), optimizer)
    results = train(engine, world, range(2))
    begin_checkpoint(root, 2, engine.save, {"step": 2}, world).finish()
    results += train(engine, world, range(2, 3))
    begin_checkpoint(root, 3, engine.save, {"step": 3}, world).finish()
    return results + train(engine, world, range(3, STEPS)), weights(engine)


def resume(world: World, stage: int, optimizer, root: Path):
    engine = make_engine(world, engine_config(zero_stage=stage), optimizer)
    latest = find_latest(root)
    engine.load(latest)
    step = load_state(latest)["step"]
    return step, train(engine, world, range(step, STEPS)), weights(engine)


@pytest.mark.parametrize("stage, optimizer", [(0, MUON), (2, ADAMW)])
def test_new_processes_resume_bitwise_from_the_newest_undamaged_one(tmp_path, stage, optimizer):
    straight = run_ranks(2, train_and_save, stage, optimizer, tmp_path)
    for newest in (3, 2):
        resumed = run_ranks(2, resume, stage, optimizer, tmp_path)
        for (results, whole), (step, later, ours) in zip(straight, resumed, strict=True):
            assert step == newest
            assert later == results[newest:]
            assert all(torch.equal(ours[name], whole[name]) for name in whole)
        damaged = max((tmp_path / "step_3").rglob("*.pt"))
        damaged.write_bytes(damaged.read_bytes()[:-1])


def save_failing(world: World, rank: int, root: Path):
    def write(directory: Path) -> None:
        if world.rank == rank:
            raise OSError(28, "No space left on device")
        time.sleep(0.3)  # the other one is long gone by the time this one writes
        (directory / f"part_{world.rank}").write_text("whole")

    begin_checkpoint(root, 7, write, {}, world).finish()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_in_write_fails_all_and_leaves_nothing(tmp_path, rank):
    began = time.monotonic()
    with pytest.raises(RankFailure, match="No space left"):
        run_ranks(2, save_failing, rank, tmp_path)
    assert time.monotonic() - began < 60
    assert find_latest(tmp_path) is None
    assert not (tmp_path / "step_7").exists()


def save_where_nothing_can_be(world: World, root: Path):
    try:
        begin_checkpoint(root, 7, lambda _directory: None, {}, world).finish()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def test_an_error_of_rank_0_is_raised_on_every_rank(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    first, second = run_ranks(2, save_where_nothing_can_be, file)
    assert first[0] == "InputError"
    assert "cannot be written (File exists" in first[1]
    assert second[0] == "CheckpointError"
    assert "rank 0 could not save the checkpoint: FileExistsError" in second[1]
    assert str(file) in second[1]
