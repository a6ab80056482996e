"""What is registered is read, links of the hub's cache included, and never written to."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry import ModelRegistry, verify_manifest
from distforge.registry.contents import measure_directory
from tests.registry_template import migrate
from tests.shared import build_once


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    (tmp_path / "runs").mkdir()
    shutil.copy(build_once("registry", migrate) / "registry.db", tmp_path / "runs" / "registry.db")
    return ModelRegistry(tmp_path / "runs" / "registry.db")


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model as the hub's client lays it out."""
    repo = tmp_path / "hub" / "models--org--name"
    made = repo / "snapshots" / "0a1b"
    made.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights")):
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (made / name).symlink_to(Path("..", "..", "blobs", blob.name))
    return made


def test_a_snapshot_of_the_hub_is_registered_verified_and_copied(
    registry: ModelRegistry, snapshot: Path, tmp_path: Path
) -> None:
    version = registry.register_model(2, 0, "champion", snapshot)
    assert sorted(p.name for p in snapshot.iterdir()) == ["config.json", "model.safetensors"]
    assert registry.verify(version) == registry.get(version).manifest
    copy = registry.download(version, tmp_path / "copy")
    assert verify_manifest(copy) == registry.get(version).manifest
    assert not (copy / "model.safetensors").is_symlink()
    (snapshot / "model.safetensors").resolve().write_bytes(b"weightz")
    with pytest.raises(InputError, match=r"model\.safetensors is not what was registered"):
        registry.verify(version)
    with pytest.raises(InputError, match=r"model\.safetensors has sha256"):
        registry.download(version, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_same_content_has_one_manifest_whether_linked_or_not(snapshot: Path) -> None:
    plain = shutil.copytree(snapshot, snapshot.parents[3] / "plain")
    assert measure_directory(plain) == measure_directory(snapshot)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../secret", "../../blobs", "nowhere"])
def test_a_link_to_what_is_not_of_the_model_is_refused(
    registry: ModelRegistry, snapshot: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret").write_text("a private key")
    (snapshot / "tokenizer.json").symlink_to(target)
    with pytest.raises(InputError, match=r"tokenizer\.json is a link to .*, which is no file of"):
        registry.register_model(2, 0, "champion", snapshot)
    assert registry.find() == []


def test_the_blobs_of_another_model_are_not_this_ones(
    registry: ModelRegistry, snapshot: Path
) -> None:
    other = snapshot.parents[2] / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("x")
    (snapshot / "x").symlink_to(other / "x")
    with pytest.raises(InputError, match="is a link to"):
        registry.register_model(2, 0, "champion", snapshot)


def test_progress_is_told_within_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(5 << 20))
    told: list[None] = []
    measure_directory(tmp_path, lambda: told.append(None))
    assert len(told) == 5
