"""The registry's real server, started by ``launch/registry.py``: on SQLite with authentication, and
on PostgreSQL."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from distforge.cli import main
from distforge.errors import InputError
from distforge.registry import ModelRegistry, RegistryUnavailable
from tests.faults.registry_processes import make_model, note
from tests.faults.registry_server import (
    PASSWORD,
    running_postgres,
    running_server,
    server_python,
)
from tests.faults.test_spool import assert_all_there, processes
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
DATABASES = {"models": "registry.db", "users": "users.db"}
MAKE = """
import json, sys
from pathlib import Path
from distforge.registry.server_databases import make_databases
python, files = sys.argv[1], json.loads(sys.argv[2])
make_databases(python, {kind: Path(file) for kind, file in files.items()})
"""


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def life_of_a_model(url: str, tmp_path: Path) -> None:
    """Registered from one directory, judged, promoted, fetched into another, refused when it is
    not what was registered, removed."""
    registry = ModelRegistry(url, events=tmp_path / "events.jsonl")
    champion = registry.register_model(2, 0, "champion", make_model(tmp_path / "champion", "c"))
    versions = []
    for number in range(4):
        model = make_model(tmp_path / f"baked{number}", f"b{number}")
        (model / "sub").mkdir()
        (model / "sub" / "vocab.txt").write_text("words")
        metadata = {"parent": champion, "metrics": {"accuracy_overall": 0.8 + number / 100}}
        versions.append(registry.register_model(3, 1, "baked_reasoning", model, metadata))
    assert versions == [f"baked_reasoning/{number}" for number in (1, 2, 3, 4)]
    repeated = registry.register_model(3, 1, "baked_reasoning", tmp_path / "baked2")
    assert repeated == versions[2]
    registry.promote(versions[1], "baked-best")
    found = registry.by_alias("baked_reasoning", "baked-best")
    assert found is not None
    assert (found.version, found.metrics) == (versions[1], {"accuracy_overall": 0.81})
    assert (found.uploaded, found.aliases) == (True, ("baked-best",))
    lineage = registry.lineage(champion)
    assert [v.version for v in lineage.descendants] == versions
    # The copy is the server's own: what happens to the original does not matter.
    (tmp_path / "baked1" / "model.safetensors").write_text("changed")
    registry.verify(versions[1])
    copy = registry.download(versions[1], tmp_path / "copy")
    assert (copy / "model.safetensors").read_text() == "b1"
    assert (copy / "sub" / "vocab.txt").read_text() == "words"
    registry.record_handoff(versions[1], "phase4", "PASS", {"baked_accuracy": 0.9})
    assert [(h.target, h.verdict, h.metrics) for h in registry.handoffs(versions[1])] == [
        ("phase4", "PASS", {"baked_accuracy": 0.9})
    ]
    assert registry.gc("baked_reasoning", 1) == [versions[0], versions[2]]
    assert [v.version for v in registry.find("baked_reasoning")] == [versions[1], versions[3]]
    events = registry.events.read() if registry.events else []
    assert [e["event"] for e in events].count("register") == 5
    assert [e["event"] for e in events][-2:] == ["remove", "remove"]


def test_a_model_on_the_server(server: str, admin: None, tmp_path: Path) -> None:
    life_of_a_model(server, tmp_path)


def test_a_flipped_byte_on_the_server_is_refused(
    server: str, admin: None, place: Path, tmp_path: Path
) -> None:
    registry = ModelRegistry(server)
    version = registry.register_model(2, 0, "flipped", make_model(tmp_path / "m", "weights"))
    [stored] = [
        path
        for path in (place / "artifacts").rglob("model.safetensors")
        if path.read_text() == "weights"
    ]
    stored.write_text("weightz")
    for attempt in (
        lambda: registry.verify(version),
        lambda: registry.download(version, tmp_path / "copy"),
    ):
        with pytest.raises(InputError, match=r"model\.safetensors has sha256"):
            attempt()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "user, password",
    [
        ("", ""),
        ("admin", "wrong password here"),
        ("admin", ""),
        ("admin", "password1234"),  # a default that MLflow once had
        ("nobody", PASSWORD),
        ("admin' OR '1'='1", "x"),
    ],
)
def test_wrong_credentials_are_refused(
    server: str, monkeypatch: pytest.MonkeyPatch, user: str, password: str
) -> None:
    for name, value in (("USERNAME", user), ("PASSWORD", password)):
        if value:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        else:
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(RegistryUnavailable, match="does not let this user in"):
        ModelRegistry(server)


def test_the_command_line_over_the_network(
    server: str,
    admin: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("DISTFORGE_REGISTRY_URI", server)
    monkeypatch.chdir(tmp_path)
    model = make_model(tmp_path / "m", "of the command line")
    version = ModelRegistry(server).register_model(3, 2, "rl_reasoning", model)
    assert main(["registry", "promote", version, "rl-best"]) == 0
    assert main(["registry", "list", "--model-type", "rl_reasoning"]) == 0
    assert "rl-best" in capsys.readouterr().out
    assert main(["registry", "show", version, "--download", "copy"]) == 0
    assert (tmp_path / "copy" / "model.safetensors").read_text() == "of the command line"
    assert main(["registry", "verify", version]) == 0
    assert main(["registry", "lineage", version]) == 0
    assert f"{version} (rl-best): phase 3, step 2" in capsys.readouterr().out
    assert main(["registry", "show", "rl_reasoning/99"]) == 2


def test_secrets_are_for_this_user_alone(server: str, place: Path) -> None:
    for name in ("auth.ini", "cookie.key"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    assert PASSWORD not in "".join(p.read_text() for p in place.glob("*.ini"))
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert PASSWORD not in shown.stdout


@pytest.mark.parametrize("versions", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_postgresql_from_down_to_eight_writers(
    tmp_path: Path, versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no password, so its token is what lets this user in, and nobody else."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name in ("spooled", "life", "writers"):
        (tmp_path / name).mkdir()
    spool = note(tmp_path / "spooled")
    with pytest.raises(RegistryUnavailable, match="cannot be used"):
        ModelRegistry(url)
    with (
        running_postgres(tmp_path / "postgres") as database,
        running_server(tmp_path / "server", port=port, backend=database),
    ):
        with monkeypatch.context() as stranger:
            stranger.setenv("XDG_STATE_HOME", str(tmp_path / "of-another-user"))
            with pytest.raises(RegistryUnavailable, match="does not let this user in"):
                ModelRegistry(url)
        life_of_a_model(url, tmp_path / "life")
        for records in (spool, note(tmp_path / "spooled")):  # the second repeats the first
            records.replay(ModelRegistry(url))
            assert records.pending() == []
        found = ModelRegistry(url).find(source="spooled")
        assert [v.version for v in found] == ["baked_reasoning/5", "champion/2"]
        assert found[0].aliases == ("baked-best", "baked-latest")
        outcome = processes("write", str(versions), url, str(tmp_path / "writers"))
        assert_all_there(outcome, versions)
    assert spool.failed() == []


def test_the_server_refuses_to_be_open_to_others(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "registry.py"), "--host", "0.0.0.0"]
    result = subprocess.run(
        [*command, "--directory", str(tmp_path / "s")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DISTFORGE_REGISTRY_PASSWORD": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert "which others reach; set a password" in result.stderr
    assert not (tmp_path / "s").exists()


def test_spool_lines_hold_no_secret(tmp_path: Path, admin: None) -> None:
    spool = note(tmp_path)
    assert PASSWORD not in spool.path.read_text()
    assert json.loads(spool.path.read_text().splitlines()[0])["op"] == "register"


def making(directory: Path) -> subprocess.Popen[bytes]:
    """A process, in a group of its own, that makes the server's databases."""
    files = {kind: str(directory / name) for kind, name in DATABASES.items()}
    command = [sys.executable, "-c", MAKE, server_python(), json.dumps(files)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
    )


def kill(process: subprocess.Popen[bytes], everything: bool) -> Sequence[psutil.Process]:
    """SIGKILL to it, or to all of its group; the children that outlived it."""
    children = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    return psutil.wait_procs(children, timeout=2)[1]


def tables(file: Path) -> list[str]:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        found = connection.execute("select name from sqlite_master where type = 'table'")
        return sorted(name for (name,) in found)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_databases_that_are_killed_while_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    assert making(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    expected = {name: tables(tmp_path / "whole" / name) for name in DATABASES.values()}
    rng = random.Random(22)
    for number in range(4):
        (directory := tmp_path / str(number)).mkdir()
        process = making(directory)
        try:
            assert process.wait(rng.uniform(0.1, 0.9) * seconds) == 0  # a fast one has ended
        except subprocess.TimeoutExpired:
            assert not kill(process, everything=number % 2 == 0)
        for file in directory.glob("*.db"):
            assert tables(file) == expected[file.name]
        assert making(directory).wait() == 0
        assert {name: tables(directory / name) for name in expected} == expected
