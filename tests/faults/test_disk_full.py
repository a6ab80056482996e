"""A disk that fills up in the middle of a save: one clear sentence, and nothing earlier is lost."""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.errors import InputError
from distforge.registry.manifest import verify_manifest
from distforge.training.checkpoint import begin_checkpoint, find_latest
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.training_cases import engine_config, make_engine, train

# Of the tiny engine, weights take about 80 kB and the optimizer twice that.
LARGEST_FILE = 60_000
TMPFS_BYTES = 600_000


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(
            "NOT TESTED on a full file system: mounting a tmpfs needs root; a file size "
            "limit is tested instead"
        )
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def save_twice(world: World, stage: int, root: Path, limit: int) -> tuple[str, int]:
    engine = make_engine(
        world, engine_config(backend="deepspeed" if stage else "auto", zero_stage=stage)
    )
    train(engine, world, range(1))
    begin_checkpoint(root, 1, engine.save, {"step": 1}, world).finish()
    train(engine, world, range(1, 2))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    else:
        fill = (root / "else.bin").open("wb")
        with contextlib.suppress(OSError):
            while True:
                fill.write(bytes(1000))
                fill.flush()
    try:
        begin_checkpoint(root, 2, engine.save, {"step": 2}, world).finish()
    except InputError as error:
        return str(error), len(train(engine, world, range(2, 3)))
    return "", 0


def assert_only_the_first_is_there(root: Path) -> None:
    assert find_latest(root) == root / "step_1"
    verify_manifest(root / "step_1")
    assert (root / "latest").read_text() == "step_1\n"
    assert {p.name for p in root.iterdir()} <= {"step_1", "latest", "else.bin"}


@pytest.mark.parametrize("stage", [0, 2])
def test_files_that_may_grow_no_further(tmp_path: Path, stage: int) -> None:
    [(message, steps_after)] = run_ranks(1, save_twice, stage, tmp_path, LARGEST_FILE)
    assert f"the checkpoint {tmp_path / 'step_2'} cannot be written (" in message
    assert "free space there" in message
    assert steps_after == 1, "the engine is as usable as before"
    assert_only_the_first_is_there(tmp_path)


def test_a_full_file_system(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as root:
        [(message, _)] = run_ranks(1, save_twice, 0, root, 0)
        assert "cannot be written (" in message
        assert_only_the_first_is_there(root)


def bake_on_full_disk(world: World, words: list[str]) -> tuple[int, str]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return main(["bake", *words]), said.getvalue()


def test_the_command_says_it_in_one_line(config: Path, tmp_path: Path) -> None:
    words = ["--config", str(config), "--output", str(tmp_path), "--data.num-examples", "70"]
    [(status, said)] = run_ranks(1, bake_on_full_disk, words)
    assert status == 2
    assert said.startswith("error: the checkpoint")
    assert len(said.splitlines()) == 1
