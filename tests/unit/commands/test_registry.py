"""What `distforge registry` prints, on a registry with two models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.registry import ModelRegistry, Session
from tests.free_port import free_port


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """Two versions of one model, measured on unlike data, and their champion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTFORGE_REGISTRY_URI", str(tmp_path / "r.db"))
    registry = ModelRegistry(tmp_path / "r.db")
    parent = registry.register_model(2, 0, "champion", model(tmp_path, "champion"), {})
    for number, data in enumerate(("a" * 64, "b" * 64)):
        path = model(tmp_path, f"baked{number}-of-a-name-that-is-rather-long-for-eighty-columns")
        metrics = {"accuracy_overall": 0.9 - number / 10}
        metadata = {"parent": parent, "metrics": metrics, "dataset_sha256": data}
        registry.register_model(3, 1, "baked_reasoning", path, metadata)
    registry.promote("baked_reasoning/2", "baked-latest")
    return registry


def model(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(name.encode())
    return path


def test_the_list_cuts_no_name_and_sets_no_accuracy_apart_from_its_data(
    registry, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["registry", "list"]) == 0
    long = "of-a-name-that-is-rather-long-for-eighty-columns"
    assert capsys.readouterr().out.splitlines() == [
        "baked_reasoning/1",
        "    accuracy 90.0% on data aaaaaaaa, from champion/1",
        f"    {tmp_path}/baked0-{long}",
        "baked_reasoning/2  (baked-latest)",
        "    accuracy 80.0% on data bbbbbbbb, from champion/1",
        f"    {tmp_path}/baked1-{long}",
        "champion/1",
        f"    {tmp_path}/champion",
    ]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("baked_reasoning", "has no number; choose one of baked_reasoning/1, baked_reasoning/2"),
        ("baked_reasoning/7", "choose one of baked_reasoning/1, baked_reasoning/2"),
        ("other/1", "choose one of those that `distforge registry list` shows"),
        ("other", "is not of the form name/number"),
    ],
)
def test_a_version_that_is_not_there_says_which_are(version, said, registry, capsys):
    assert main(["registry", "show", version]) == 2
    assert said in capsys.readouterr().err


def test_a_version_is_shown_with_nothing_cut(
    registry: ModelRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    registry.record_handoff("baked_reasoning/2", "phase4", "PASS", {})
    assert main(["registry", "show", "baked_reasoning/2"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "baked_reasoning/2"
    path = f"{tmp_path}/baked1-of-a-name-that-is-rather-long-for-eighty-columns"
    assert {
        ("alias", "baked-latest"),
        ("accuracy_overall", "0.8000"),
        ("dataset_sha256", "b" * 64),
        ("model_path", path),
        ("manifest", registry.get("baked_reasoning/2").manifest),
        ("handed to phase4", "PASS"),
    } <= {tuple(line.strip().split("  ", 1)) for line in map(squeezed, rest)}


def squeezed(line: str) -> str:
    """With two spaces wherever there are more."""
    return re.sub(r" {2,}", "  ", line)


def test_sessions_are_listed_with_nothing_cut(
    registry: ModelRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    where = f"{tmp_path}/runs/a-name-that-is-rather-long-for-eighty-columns"
    saved = {step: {"path": f"{where}/{step}", "manifest": "0" * 64} for step in (20, 10)}
    registry.record_session(Session("long-806e56c834d9", 3, 1, where, "host", "FINISHED", saved))
    registry.record_session(Session("b-1", 3, 2, f"{tmp_path}/b", "host", "STOPPED"))
    assert main(["registry", "list", "--sessions"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        [
            "long-806e56c834d9  phase 3, step 1: FINISHED",
            "    checkpoints 10, 20",
            f"    host:{where}",
            "b-1  phase 3, step 2: STOPPED",
            f"    host:{tmp_path}/b",
        ]
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:{port}", "nothing listens there"),
        ("http://no-such-host.invalid:{port}", "its host's name is not known"),
    ],
)
def test_a_server_that_is_not_there_is_called_so(
    address: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = address.format(port=free_port())
    assert main(["registry", "list", "--uri", uri]) == 2
    said = capsys.readouterr().err
    assert f"the registry {uri!r} cannot be used ({why}); see that it runs" in said
