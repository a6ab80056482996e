"""Checkpoints in one process: whole or absent, and the newest undamaged one is found."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from distforge import durable
from distforge.errors import InputError
from distforge.registry.manifest import verify_manifest
from distforge.training import checkpoint
from distforge.training.checkpoint import begin_checkpoint, find_latest, load_state
from distforge.training.distributed import World

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def write_weights(content: bytes):
    def write(directory: Path) -> None:
        (directory / "shards").mkdir()
        (directory / "shards" / "weights.bin").write_bytes(content)

    return write


def save(root: Path, step: int, content: bytes = b"weights", **kwargs) -> Path:
    return begin_checkpoint(
        root, step, write_weights(content), {"step": step}, WORLD, **kwargs
    ).finish()


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_round_trip(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    state = {"step": 7, "best": None, "losses": [0.1, 2.0], "name": "ü"}
    saved = begin_checkpoint(root, 7, write_weights(b"abc"), state, WORLD).finish()
    assert saved == root / "step_7"
    assert find_latest(root) == saved
    assert load_state(saved) == state
    assert (saved / "shards" / "weights.bin").read_bytes() == b"abc"
    listed = [entry["path"] for entry in json.loads((saved / "manifest.json").read_text())]
    assert listed == ["shards/weights.bin", "signature", "state.json"]
    verify_manifest(saved)


def test_latest_file_names_the_last_saved(tmp_path):
    for step in (3, 12):
        save(tmp_path, step)
        assert (tmp_path / "latest").read_text() == f"step_{step}\n"
    assert names(tmp_path) == {"step_3", "step_12", "latest"}


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (9, 10):
        save(tmp_path, step)
    assert find_latest(tmp_path) == tmp_path / "step_10"


@pytest.mark.parametrize("root", ["absent", "empty"])
def test_nothing_to_find(tmp_path, root):
    (tmp_path / "empty").mkdir()
    assert find_latest(tmp_path / root) is None


@pytest.mark.parametrize("damaged", ["shards/weights.bin", "state.json", "manifest.json"])
def test_a_flipped_byte_falls_back_to_the_older_one(tmp_path, caplog, damaged):
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step_2" / damaged
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert find_latest(tmp_path) == tmp_path / "step_1"
    [record] = caplog.records
    assert "step_2" in record.message
    assert damaged.rpartition("/")[2] in record.message or "sha256" in record.message


def test_a_missing_file_falls_back_and_nothing_whole_is_none(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step_2" / "shards" / "weights.bin").unlink()
    assert find_latest(tmp_path) == tmp_path / "step_1"
    (tmp_path / "step_1" / "manifest.json").unlink()
    assert find_latest(tmp_path) is None


def test_one_that_cannot_be_read_falls_back(tmp_path, caplog):
    save(tmp_path, 1)
    save(tmp_path, 2)
    manifest = tmp_path / "step_2" / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    assert find_latest(tmp_path) == tmp_path / "step_1"
    assert "Is a directory" in caplog.text


@pytest.mark.parametrize("leftover", ["step_9.tmp", "step_9.tmp.old", "step_9.old.tmp"])
def test_leftovers_are_ignored_and_cleared_by_the_next_save(tmp_path, leftover):
    save(tmp_path, 1)
    (tmp_path / "step_1").rename(tmp_path / leftover)  # whole, but never given its name
    save(tmp_path, 2, keep_last=1)
    assert names(tmp_path) == {"step_2", "latest"}
    (tmp_path / "step_2").rename(tmp_path / leftover)
    assert find_latest(tmp_path) is None


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_retention(tmp_path, keep_last):
    for step in range(1, 6):
        save(tmp_path, step, keep_last=keep_last)
    kept = {f"step_{step}" for step in range(6 - keep_last, 6)}
    assert names(tmp_path) == kept | {"latest"}


def test_every_so_many_are_kept_for_good(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, keep_last=1, keep_every=3)
    assert names(tmp_path) == {"step_3", "step_6", "step_7", "latest"}


def test_what_is_pinned_is_kept_until_it_is_not(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep_last=1, pinned={2, 3})
    assert names(tmp_path) == {"step_2", "step_3", "step_5", "latest"}
    save(tmp_path, 6, keep_last=1, pinned={3})
    assert names(tmp_path) == {"step_3", "step_6", "latest"}


def test_a_later_damaged_one_does_not_push_out_the_new_one(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "step_10" / "state.json").unlink()
    save(tmp_path, 6, keep_last=1)
    assert find_latest(tmp_path) == tmp_path / "step_6"


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 4, b"old")
    save(tmp_path, 4, b"new")
    assert names(tmp_path) == {"step_4", "latest"}
    assert (tmp_path / "step_4" / "shards" / "weights.bin").read_bytes() == b"new"
    verify_manifest(tmp_path / "step_4")


@pytest.mark.parametrize("step", [1, 2])
def test_a_failing_write_leaves_the_previous_intact(tmp_path, step):
    save(tmp_path, 1)
    before = verify_manifest(tmp_path / "step_1")

    def fail(directory: Path) -> None:
        (directory / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        begin_checkpoint(tmp_path, step, fail, {}, WORLD).finish()
    assert names(tmp_path) == {"step_1", "latest"}
    assert verify_manifest(find_latest(tmp_path)) == before


@pytest.mark.parametrize(
    "stops_at, survivor",
    [
        ("write_signed_manifest", "step_1"),
        ("publish_directory", "step_1"),
        ("write_text", "step_2"),
        ("remove_directory", "step_2"),
    ],
)
def test_a_kill_between_any_two_steps_leaves_one_to_resume_from(
    tmp_path, monkeypatch, stops_at, survivor
):
    save(tmp_path, 1)
    module = checkpoint if stops_at == "write_signed_manifest" else durable
    genuine = getattr(module, stops_at)

    def kill(path, *args, **kwargs):
        if stops_at == "write_text" and path.name != "latest":
            return genuine(path, *args, **kwargs)
        raise SystemExit

    monkeypatch.setattr(module, stops_at, kill)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_args, **_kwargs: None)
    with pytest.raises(SystemExit):
        save(tmp_path, 2, keep_last=1)
    monkeypatch.undo()
    assert find_latest(tmp_path) == tmp_path / survivor
    save(tmp_path, 3, keep_last=1)
    assert names(tmp_path) == {"step_3", "latest"}


def test_all_of_it_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """No kill shows this, only a power cut; so it is read off the calls to the system."""
    flushed, unflushed = set(), {}
    sync, rename = os.fsync, os.rename

    def note_sync(descriptor):
        sync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def note_rename(source, target, *args, **kwargs):
        inside = [Path(source), *Path(source).rglob("*")]
        unflushed[Path(target)] = [p.name for p in inside if p.stat().st_ino not in flushed]
        rename(source, target, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    saved = save(tmp_path, 1)
    assert unflushed == {saved: []}
    assert tmp_path.stat().st_ino in flushed  # the new name itself


def test_state_that_is_not_json_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError):
        begin_checkpoint(tmp_path, 1, write_weights(b""), {"step": object()}, WORLD).finish()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("step", "keep_last", "said"), [(-1, 2, "step is -1"), (1, 0, "keep_last is 0")]
)
def test_bad_numbers(tmp_path, step, keep_last, said):
    with pytest.raises(InputError, match=said):
        save(tmp_path, step, keep_last=keep_last)


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_unreadable_state_names_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state\.json"):
        load_state(tmp_path)
