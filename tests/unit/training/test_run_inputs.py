"""What a run starts from is compared by content: between its ranks, and when it goes on."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.errors import InputError
from distforge.training.distributed import World
from distforge.training.run_directory import claim_run_directory
from distforge.training.run_inputs import path_sha256, require_alike, require_unchanged

ALONE = World(0, 0, 1, torch.device("cpu"))
DATA, CHAMPION = "d" * 64, "c" * 64


@dataclasses.dataclass(frozen=True)
class Ranks(World):
    """A world whose other ranks say what is given; this one is rank 0."""

    others: tuple[Any, ...] = ()

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, *self.others]


def start(run: Path, *, is_new: bool = False, force: bool = False, **inputs: str) -> dict[str, Any]:
    known = {"training data": DATA, "champion": CHAMPION}
    named = {name.replace("_", " "): digest for name, digest in inputs.items()}
    require_unchanged(run, {**known, **named}, ALONE, is_new=is_new, force=force)
    return json.loads((run / "identity.json").read_text())


def test_the_same_goes_on(tmp_path: Path) -> None:
    first = start(tmp_path, is_new=True)
    assert first["inputs"] == {"training data": DATA, "champion": CHAMPION}
    assert start(tmp_path) == first


@pytest.mark.parametrize("name", ["training data", "champion"])
def test_what_has_changed_is_named_and_refused_unless_forced(tmp_path: Path, name: str) -> None:
    first = start(tmp_path, is_new=True)
    changed = {name.replace(" ", "_"): "e" * 64}
    with pytest.raises(InputError) as refusal:
        start(tmp_path, **changed)
    assert str(refusal.value) == (
        f"{tmp_path} started from another {name} ({first['inputs'][name][:12]}) than is there now "
        "(eeeeeeeeeeee); put that back, give another --name, or go on all the same with --resume "
        "force"
    )
    assert json.loads((tmp_path / "identity.json").read_text()) == first
    forced = start(tmp_path, force=True, **changed)
    assert forced["forced"] == [{name: first["inputs"][name]}]
    assert forced["inputs"][name] == "e" * 64
    # From then on it goes on by itself, and the record stays.
    assert start(tmp_path, **changed) == forced


def test_what_is_unknown_is_no_change(tmp_path: Path) -> None:
    start(tmp_path, is_new=True, adapter="")
    start(tmp_path, adapter="")


def test_a_directory_without_a_record_goes_on_with_a_warning(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        start(tmp_path)
    assert "no record of what it started from" in caplog.text
    with pytest.raises(InputError):
        start(tmp_path, champion="e" * 64)


def test_another_distforge_is_noted(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("distforge.training.run_inputs.source_commit", lambda: "a" * 40)
    monkeypatch.setattr("distforge.training.run_inputs.__version__", "1.0")
    start(tmp_path, is_new=True)
    monkeypatch.setattr("distforge.training.run_inputs.__version__", "1.1")
    with caplog.at_level(logging.WARNING):
        record = start(tmp_path)
    assert record["distforge"] == ["1.0 aaaaaaaaaaaa", "1.1 aaaaaaaaaaaa"]
    assert f"{tmp_path} continues with distforge 1.1 aaaaaaaaaaaa after 1.0" in caplog.text


def claim(root: Path) -> None:
    claim_run_directory(str(root), "x", "seed = 1\n", "a", "resume", ALONE)


def test_a_run_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    claim(tmp_path)
    start(tmp_path / "x", is_new=True)
    claim(tmp_path)
    record = tmp_path / "x" / "identity.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 2}))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").iterdir()}
    with pytest.raises(InputError, match="written by a newer distforge, in form 2 where this one"):
        claim(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "1"}'])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    claim(tmp_path)
    (tmp_path / "x" / "identity.json").write_text(text)
    with pytest.raises(InputError, match=r"identity\.json cannot be read .*restore it"):
        claim(tmp_path)


def test_ranks_that_differ_are_told_which_and_in_what() -> None:
    same = {"configuration": "f" * 64, "champion": CHAMPION}
    world = Ranks(0, 0, 3, torch.device("cpu"), (same, {**same, "champion": "e" * 64}))
    with pytest.raises(InputError) as refusal:
        require_alike(world, same)
    assert str(refusal.value) == (
        "rank 2 has another champion (eeeeeeeeeeee) than rank 0 (cccccccccccc); give all ranks the "
        "same"
    )
    require_alike(Ranks(0, 0, 2, torch.device("cpu"), (same,)), same)


def test_files_are_known_by_bytes_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = path_sha256(str(tmp_path / "a"))
    (tmp_path / "a" / "x").write_text("2")
    second = path_sha256(str(tmp_path / "a"))
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert len({first, second, path_sha256(str(tmp_path / "a"))}) == 3
    assert path_sha256("") == ""
