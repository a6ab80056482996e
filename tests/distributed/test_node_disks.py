"""Ranks whose nodes have a disk each: what they write comes to rank 0, what they read to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.training import node_disks
from distforge.training.checkpoint import begin_checkpoint, find_latest, verify_checkpoint
from distforge.training.distributed import World
from distforge.training.node_disks import (
    copy_to_all,
    first_by_disk,
    move_to_main,
    own_part,
    seen_by_all,
)
from tests.distributed.harness import run_ranks

# Ranks 1 and 2 are on one node; pieces are small, so that files take several.
DISKS = ("a", "b", "b")
SIZES = (0, 10, 1000)


def content(rank: int, size: int) -> bytes:
    return bytes((rank + 7 * at) % 251 for at in range(size))


def files_in(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def disk(world: World, folder: Path) -> Path:
    node_disks._PIECE_BYTES = 300
    return folder / DISKS[world.rank]


def move(world: World, folder: Path) -> list[int]:
    root = disk(world, folder)
    first = first_by_disk(root, world)
    if world.is_main:
        (root / "step_3.tmp").mkdir()
    own = own_part(root / "step_3.tmp", first, world)
    (own / "sub").mkdir(exist_ok=True)
    for size in SIZES:
        (own / "sub" / f"{world.rank}_{size}").write_bytes(content(world.rank, size))
    world.barrier()
    move_to_main(own, root / "step_3.tmp", first, world)
    return first


def test_what_others_write_is_moved_to_rank_0(tmp_path: Path) -> None:
    # Of another run, or of one that was killed: not what is written now.
    (stale := tmp_path / "b" / "step_3.tmp").mkdir(parents=True)
    (stale / "old").write_text("old")
    assert run_ranks(3, move, tmp_path) == [[0, 1, 1]] * 3
    wanted = {f"sub/{rank}_{size}": content(rank, size) for rank in range(3) for size in SIZES}
    assert files_in(tmp_path / "a" / "step_3.tmp") == wanted
    assert files_in(tmp_path / "b") == {"step_3.tmp/old": b"old"}
    assert not list(tmp_path.rglob(".seen*"))


def read(world: World, folder: Path) -> tuple[dict[str, bytes], bool]:
    root = disk(world, folder)
    with seen_by_all(root / "step_3", world) as seen:
        return files_in(seen), seen == root / "step_3"


def test_what_rank_0_has_is_read_by_all_and_leaves_nothing(tmp_path: Path) -> None:
    wanted = {"x": content(0, 1000), "sub/y": b"", "sub/z": b"1"}
    for name, data in wanted.items():
        (file := tmp_path / "a" / "step_3" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (stale := tmp_path / "b" / "step_3").mkdir(parents=True)
    (stale / "x").write_text("of another run")
    assert run_ranks(3, read, tmp_path) == [(wanted, True), (wanted, False), (wanted, False)]
    assert files_in(tmp_path / "b") == {"step_3/x": b"of another run"}


def copy(world: World, folder: Path) -> None:
    root = disk(world, folder)
    copy_to_all(root / "model", world)
    copy_to_all(root / "summary.json", world)
    copy_to_all(root / "absent", world)


def test_a_copy_is_left_in_the_place_of_what_was_there(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "a" / "model" / "weights").write_bytes(content(1, 1000))
    (tmp_path / "a" / "summary.json").write_text("new")
    (tmp_path / "b" / "model" / "adapter").write_text("of an earlier run")
    (tmp_path / "b" / "summary.json").write_text("older")
    run_ranks(3, copy, tmp_path)
    assert files_in(tmp_path / "b") == files_in(tmp_path / "a")
    assert files_in(tmp_path / "a") == {"model/weights": content(1, 1000), "summary.json": b"new"}


def on_a_shared_disk(world: World, folder: Path) -> tuple[list[int], bool, bool]:
    first = first_by_disk(folder, world)
    own = own_part(folder / "step_3.tmp", first, world)
    with seen_by_all(folder / "step_3", world) as seen:
        return first, own == folder / "step_3.tmp", seen == folder / "step_3"


def test_on_a_file_system_that_all_share_nothing_is_copied(tmp_path: Path) -> None:
    assert run_ranks(2, on_a_shared_disk, tmp_path) == [([0, 0], True, True)] * 2
    assert not list(tmp_path.iterdir())


def refused(world: World, folder: Path) -> str:
    try:
        copy_to_all(disk(world, folder) / "model", world)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fault", ["no directory", "a name too long"])
def test_a_node_that_cannot_write_is_told_to_all(tmp_path: Path, fault: str) -> None:
    """What root cannot do either."""
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "a" / "model" / "x").write_bytes(content(1, 1000))
    if fault == "no directory":
        (tmp_path / "b").write_text("a file")
    else:
        (tmp_path / "a" / "model" / "x").rename(tmp_path / "a" / "model" / ("n" * 254))
    for said in run_ranks(3, refused, tmp_path):
        assert "cannot be exchanged with the node of rank 1 (" in said
        assert "a file system that all nodes share" in said


def save(world: World, folder: Path) -> None:
    def write(directory: Path) -> list[str]:
        (directory / f"part_{world.rank}").write_bytes(content(world.rank, 1000))
        return [f"part_{world.rank}"]

    root = disk(world, folder) / "checkpoints"
    for step in (3, 4, 5):
        begin_checkpoint(root, step, write, {"step": step}, world).finish()


def test_a_checkpoint_lies_whole_on_rank_0_s_disk(tmp_path: Path) -> None:
    (tmp_path / "b" / "checkpoints" / "step_2.rank1.tmp").mkdir(parents=True)  # of a killed one
    run_ranks(3, save, tmp_path)
    root = tmp_path / "a" / "checkpoints"
    assert find_latest(root) == root / "step_5"
    for step in (4, 5):
        verify_checkpoint(root / f"step_{step}")
        parts = {f"part_{rank}": content(rank, 1000) for rank in range(3)}
        assert parts.items() <= files_in(root / f"step_{step}").items()
    assert not list((tmp_path / "b" / "checkpoints").iterdir())
