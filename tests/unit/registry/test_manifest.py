"""The manifest of a directory: what it lists, and what it refuses."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.registry.manifest import find_manifest_faults, manifest_id


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "weights").write_bytes(bytes(range(256)))
    (directory / "sub" / "empty").touch()
    return directory


def test_lists_every_other_file_with_its_size_and_sha256(model: Path) -> None:
    write_manifest(model)
    write_manifest(model)  # A second writing does not list the first.
    weights = bytes(range(256))
    assert json.loads((model / MANIFEST_NAME).read_text()) == [
        {"path": "config.json", "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        {"path": "sub/empty", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        {"path": "weights", "bytes": 256, "sha256": hashlib.sha256(weights).hexdigest()},
    ]
    assert sorted(os.listdir(model)) == ["config.json", MANIFEST_NAME, "sub", "weights"]


def test_the_id_is_the_hash_of_the_canonical_list(model: Path) -> None:
    identity = write_manifest(model)
    entries = json.loads((model / MANIFEST_NAME).read_text())
    lines = ",".join(
        f'{{"bytes":{e["bytes"]},"path":"{e["path"]}","sha256":"{e["sha256"]}"}}' for e in entries
    )
    assert identity == hashlib.sha256(f"[{lines}]".encode()).hexdigest()
    assert verify_manifest(model) == manifest_id(model) == identity


def test_the_same_content_elsewhere_has_the_same_id(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    for name in ("weights", "sub/empty", "config.json"):
        (other / name).write_bytes((model / name).read_bytes())
    assert write_manifest(other) == write_manifest(model)


def test_one_flipped_byte_is_named(model: Path) -> None:
    write_manifest(model)
    content = bytearray((model / "weights").read_bytes())
    content[100] ^= 1
    (model / "weights").write_bytes(content)
    with pytest.raises(InputError, match=r"weights has sha256 .* says"):
        verify_manifest(model)


def test_another_size_is_named(model: Path) -> None:
    write_manifest(model)
    (model / "weights").write_bytes(b"short")
    with pytest.raises(InputError, match=r"weights has 5 bytes .* says 256"):
        verify_manifest(model)


def test_missing_and_extra_files_are_named(model: Path) -> None:
    write_manifest(model)
    (model / "sub" / "more").touch()
    with pytest.raises(InputError, match=r"sub/more is not listed"):
        verify_manifest(model)
    (model / "sub" / "more").unlink()
    (model / "sub" / "empty").unlink()
    with pytest.raises(InputError, match=r"sub/empty is listed in manifest.json but missing"):
        verify_manifest(model)


def test_a_link_cannot_be_vouched_for(model: Path, tmp_path: Path) -> None:
    write_manifest(model)
    (tmp_path / "secret").write_text("outside")
    (model / "link").symlink_to(tmp_path / "secret")
    for refuses in (verify_manifest, write_manifest):
        with pytest.raises(InputError, match="link is a link"):
            refuses(model)


def test_all_that_differs_is_found_at_once(model: Path, tmp_path: Path) -> None:
    assert write_manifest(model)
    assert list(find_manifest_faults(model)) == []
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path)
    (model / "weights").write_bytes(b"short")
    (model / "sub" / "more").touch()
    (model / "sub" / "empty").unlink()
    parts = ("config.json is a link", "sub/empty is listed", "sub/more is not", "weights has 5")
    faults = list(find_manifest_faults(model))
    assert len(faults) == len(parts)
    for fault, part in zip(faults, parts, strict=True):
        assert part in fault
    (model / MANIFEST_NAME).unlink()
    one, other = find_manifest_faults(model)
    assert "does not exist" in one
    assert "config.json is a link" in other


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/hostname", "sub/../../outside", "", ".", "a//b", "a\\b", "a\0b"]
)
def test_a_path_out_of_the_directory_is_refused(model: Path, path: str) -> None:
    (model.parent / "outside").write_text("x")
    entry = {"path": path, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (model / MANIFEST_NAME).write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="not a relative path inside"):
        verify_manifest(model)


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "is not JSON"),
        ("[]", "non-empty list"),
        ('{"path": "a"}', "non-empty list"),
        ('[{"path": "a", "bytes": true, "sha256": "' + "0" * 64 + '"}]', "not a relative path"),
        ('[{"path": "a", "bytes": 1, "sha256": "XY"}]', "not a relative path"),
    ],
)
def test_a_malformed_manifest_is_refused(model: Path, content: str, complaint: str) -> None:
    (model / MANIFEST_NAME).write_text(content)
    with pytest.raises(InputError, match=complaint):
        verify_manifest(model)


def test_a_repeated_entry_is_refused(model: Path) -> None:
    write_manifest(model)
    entries = json.loads((model / MANIFEST_NAME).read_text())
    (model / MANIFEST_NAME).write_text(json.dumps([*entries, entries[-1]]))
    with pytest.raises(InputError, match="twice or out of order"):
        verify_manifest(model)


def test_nothing_to_list_and_nothing_to_check_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files"):
        write_manifest(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        verify_manifest(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        verify_manifest(tmp_path / "nowhere")
