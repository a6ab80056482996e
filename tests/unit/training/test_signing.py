"""A run resumes from the checkpoints that it wrote, and from no others."""

import hashlib
import hmac
import json
import logging
import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from distforge.cli import main
from distforge.errors import InputError
from distforge.registry.manifest import write_manifest
from distforge.training.checkpoint import begin_checkpoint, find_latest
from distforge.training.distributed import World

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory with checkpoints 1 and 2."""
    for step in (1, 2):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def save(run: Path, step: int) -> None:
    def write(directory: Path) -> None:
        (directory / "weights.bin").write_bytes(b"weights")

    begin_checkpoint(run / "checkpoints", step, write, {"step": step}, WORLD).finish()


def latest(run: Path) -> str | None:
    found = find_latest(run / "checkpoints")
    return found.name if found else None


def test_the_key_is_random_and_for_its_owner_alone(run: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", 1)
    keys = [directory / "checkpoints.key" for directory in (run, tmp_path / "other")]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600, 0o600]
    first, second = (bytes.fromhex(key.read_text()) for key in keys)
    assert len(first) == 32
    assert first != second


def test_the_signature_is_the_hmac_of_name_and_manifest(run: Path) -> None:
    directory = run / "checkpoints" / "step_2"
    key = bytes.fromhex((run / "checkpoints.key").read_text())
    listed = json.loads((directory / "manifest.json").read_text())
    signed = [entry for entry in listed if entry["path"] != "signature"]
    assert len(signed) == len(listed) - 1
    message = json.dumps(["step_2", signed], sort_keys=True, separators=(",", ":")).encode()
    expected = hmac.new(key, message, hashlib.sha256).hexdigest()
    assert (directory / "signature").read_text() == expected + "\n"


def plant_unsigned(run: Path) -> None:
    planted = run / "checkpoints" / "step_999999"
    shutil.copytree(run / "checkpoints" / "step_2", planted)
    (planted / "weights.bin").write_bytes(b"hostile")
    (planted / "signature").unlink()
    write_manifest(planted)


def plant_of_another_run(run: Path) -> None:
    save(run.parent / "other", 999999)
    shutil.copytree(run.parent / "other" / "checkpoints", run / "checkpoints", dirs_exist_ok=True)


def plant_an_earlier_one_anew(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step_1", run / "checkpoints" / "step_999999")


def plant_with_a_changed_file(run: Path) -> None:
    """The signature is of this run, but for other files."""
    plant_an_earlier_one_anew(run)
    planted = run / "checkpoints" / "step_999999"
    (planted / "weights.bin").write_bytes(b"hostile")
    write_manifest(planted)


@pytest.mark.parametrize(
    "plant",
    [plant_unsigned, plant_of_another_run, plant_an_earlier_one_anew, plant_with_a_changed_file],
)
def test_a_planted_checkpoint_is_skipped_and_it_is_said_why(
    run: Path, plant, caplog: pytest.LogCaptureFixture
) -> None:
    plant(run)
    with caplog.at_level(logging.WARNING):
        assert latest(run) == "step_2"
    [record] = caplog.records
    assert "step_999999 is skipped: it has" in record.message
    assert "this run did not write it" in record.message


def test_without_its_key_a_run_says_what_to_do(run: Path) -> None:
    (run / "checkpoints.key").unlink()
    with pytest.raises(InputError) as caught:
        latest(run)
    assert str(caught.value) == (
        f"{run / 'checkpoints.key'} is missing, so nothing shows that this run wrote "
        f"{run / 'checkpoints' / 'step_2'}; copy checkpoints.key from where the run was before, "
        f"or, if you know who wrote them, sign them with `distforge trust {run}`, and resume"
    )


def test_trusted_checkpoints_are_resumed_from(run: Path, capsys: pytest.CaptureFixture) -> None:
    """As an older version left them: neither key nor signatures."""
    (run / "checkpoints.key").unlink()
    for step in (1, 2):
        (run / "checkpoints" / f"step_{step}" / "signature").unlink()
        write_manifest(run / "checkpoints" / f"step_{step}")
    (run / "checkpoints" / "step_2" / "weights.bin").write_bytes(b"changed")
    assert main(["trust", str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{run / 'checkpoints' / 'step_1'}: signed"
    assert "step_2: not signed" in said[1]
    assert latest(run) == "step_1"
    assert stat.S_IMODE((run / "checkpoints.key").stat().st_mode) == 0o600


def test_signing_that_was_killed_is_done_again(run: Path) -> None:
    """Between its two halves the manifest does not list the signature that is there."""
    directory = run / "checkpoints" / "step_2"
    listed = json.loads((directory / "manifest.json").read_text())
    kept = [entry for entry in listed if entry["path"] != "signature"]
    (directory / "manifest.json").write_text(json.dumps(kept))
    assert latest(run) == "step_1"
    assert main(["trust", str(run)]) == 0
    assert latest(run) == "step_2"


@pytest.mark.parametrize("run_directory", ["absent", "empty"])
def test_nothing_to_trust_is_bad_input(tmp_path: Path, run_directory: str) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["trust", str(tmp_path / run_directory)]) == 2


def spoil(key: Path) -> None:
    key.write_text("no key", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil, "holds no key"),
        (lambda key: key.chmod(0o644), r"has mode 0644.*chmod 600"),
        (lambda key: key.write_bytes(b"\xff"), "cannot be read"),
    ],
)
def test_a_key_that_cannot_be_used_is_one_sentence(run: Path, change, said: str) -> None:
    change(run / "checkpoints.key")
    with pytest.raises(InputError, match=said):
        latest(run)


def test_where_all_files_have_one_mode_the_key_may_have_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "checkpoints.key").chmod(0o777)

    @contextmanager
    def without_modes(dir: Path) -> Iterator[BinaryIO]:
        with (dir / "probe").open("wb") as probe:
            os.fchmod(probe.fileno(), 0o777)
            yield probe

    monkeypatch.setattr(tempfile, "TemporaryFile", without_modes)
    assert latest(run) == "step_2"


def test_a_lost_key_costs_the_earlier_checkpoints_alone(run: Path) -> None:
    (run / "checkpoints.key").unlink()
    save(run, 3)
    assert latest(run) == "step_3"


class Hostile:
    def __init__(self, created: str) -> None:
        self.created = created

    def __reduce__(self):
        return open, (self.created, "w")


def test_deepspeeds_loading_runs_nothing(tmp_path: Path) -> None:
    from distforge.training.shards import loading_plain_data

    created = tmp_path / "created"
    torch.save({"state": Hostile(str(created))}, tmp_path / "shard.pt")
    with loading_plain_data(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "shard.pt", weights_only=False)
    assert not created.exists()
    torch.load(tmp_path / "shard.pt", weights_only=False)["state"].close()
    assert created.exists(), "this is what was kept from running"
