"""The registry away, or its sender killed: the spool has the records, and each arrives once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.registry import ModelRegistry
from distforge.registry.publisher import Publisher
from distforge.registry.spool import Spool
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.faults.registry_processes import WRITERS, make_model, note
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 240


def processes(*words: str) -> object:
    """What `registry_processes` printed."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.registry_processes", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    print(result.stderr, file=sys.stderr)  # its children's tracebacks, where one fails
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def bake(_world: World, words: list[str]) -> int:
    return main(["bake", *words])


def test_the_registry_is_down_for_a_whole_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    words = ["--config", str(config), "--output", str(tmp_path), "--registry.enabled"]
    assert run_ranks(1, bake, [*words, "--registry.uri", away]) == [3]
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert summary["registry_version"] == ""
    spool = tmp_path / "registry.spool.jsonl"
    waiting = [entry["op"] for entry in Spool(spool).pending()]
    assert waiting.count("register") == 2
    assert waiting.count("session") == 5  # its start, three checkpoints, its end

    back = str(tmp_path / "registry.db")
    for _ in range(2):  # the second has nothing left to send
        capsys.readouterr()
        assert main(["registry", "list", "--uri", back, "--spool", str(spool)]) == 0
    told = capsys.readouterr().out
    assert "baked-latest" in told
    assert "baked-best" not in told  # it did not converge
    registry = ModelRegistry(back)
    assert [v.version for v in registry.find()] == ["baked_reasoning/1", "champion/1"]
    registry.verify("baked_reasoning/1")
    assert [v.version for v in registry.ancestors("baked_reasoning/1")][1:] == ["champion/1"]
    [session] = registry.sessions()
    assert (session.status, sorted(session.checkpoints)) == ("FINISHED", [6, 8])
    assert registry.get("baked_reasoning/1").tags["session"] == session.id
    assert Spool(spool).pending() == []


# By day, tests/unit/registry/test_spool.py says what is settled and what is sent again.
@pytest.mark.nightly
@pytest.mark.parametrize("which", ["kinds", "all"])
def test_a_publish_killed_after_any_change_arrives_once(tmp_path: Path, which: str) -> None:
    outcomes = processes("kill", which, str(tmp_path))
    killed_after = [outcome["after"] for outcome in outcomes]
    assert killed_after.count("create_model_version") == 2
    assert {"nothing", "create_run", "spool", "set_registered_model_alias"} <= set(killed_after)
    for outcome in outcomes:
        assert outcome["signal"] == signal.SIGKILL, outcome
        assert outcome["pending_before"] >= 1, outcome
        assert outcome["pending"] == 0, outcome
        assert outcome["failed"] == [], outcome
        assert outcome["versions"] == ["baked_reasoning/1", "champion/1"], outcome
        assert outcome["aliases"] == {
            "baked_reasoning/1": ["baked-best", "baked-latest"],
            "champion/1": ["champion"],
        }, outcome
        assert outcome["metrics"] == {"accuracy_overall": 0.9}, outcome
        assert outcome["parent"] == "champion/1", outcome


# By day, eight write to PostgreSQL (test_registry_server.py).
@pytest.mark.nightly
@pytest.mark.parametrize("versions", [2, 10])
def test_eight_writers(tmp_path: Path, versions: int) -> None:
    database = str(tmp_path / "registry.db")
    assert_all_there(processes("write", str(versions), database, str(tmp_path)), versions)


def assert_all_there(outcome: dict, versions: int) -> None:
    assert outcome["statuses"] == [0] * WRITERS
    assert len(outcome["said"]) == len(set(outcome["said"])) == WRITERS * versions
    assert set(outcome["held"]) == set(outcome["said"])
    written = [(str(w), float(n)) for w in range(WRITERS) for n in range(versions)]
    assert sorted(tuple(pair) for pair in outcome["held"].values()) == written
    # And of one content there is one version, whoever registers it at once.
    assert len(outcome["only"]) == 1
    assert outcome["same"] == outcome["only"] * WRITERS


def test_half_a_line_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    spool = note(tmp_path)
    whole = spool.path.read_bytes()
    spool.path.write_bytes(whole + b'{"key": "torn", "op": "regis')
    assert len(spool.pending()) == 2
    key = spool.register(2, 0, "champion", tmp_path / "champion", {})
    assert [entry["key"] for entry in spool.pending()][-1] == key
    assert len(spool.pending()) == 3


def test_what_can_never_be_registered_is_settled_and_kept(tmp_path: Path, caplog) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    gone = spool.register(2, 0, "champion", tmp_path / "gone", {})
    orphan = spool.register(3, 1, "baked_reasoning", tmp_path / "x", {}, parent_key=gone)
    fine = spool.register(3, 1, "baked_reasoning", make_model(tmp_path / "fine", "x"), {})
    assert spool.replay(ModelRegistry(tmp_path / "registry.db")) == 3
    assert spool.pending() == []
    assert spool.outcome(fine) == {"version": "baked_reasoning/1"}
    assert [entry["key"] for entry in spool.failed()] == [gone, orphan]
    assert "is not an exported model" in spool.failed()[0]["reason"]
    assert "cannot take register" in caplog.text


class Gate:
    """A registry that does not answer until it is let go."""

    def __init__(self, *_arguments, **_options) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, *_arguments, **_options):
        self.entered.set()
        assert self.open.wait(DEADLINE)
        raise RuntimeError("the disk of the registry burnt")


def test_noting_never_waits_for_the_registry(tmp_path: Path, monkeypatch, caplog) -> None:
    gate = Gate()
    monkeypatch.setattr("distforge.registry.publisher.ModelRegistry", gate)
    model = make_model(tmp_path / "model", "x")
    with Publisher(str(tmp_path / "registry.db"), tmp_path / "spool.jsonl") as publisher:
        publisher.spool.register(2, 0, "champion", model, {})
        publisher.send()
        assert gate.entered.wait(DEADLINE)
        began = time.monotonic()
        publisher.spool.register(2, 0, "champion", model, {})
        publisher.send()
        assert time.monotonic() - began < 5
        assert publisher.flush(0.05) is False
        gate.open.set()
        assert publisher.flush(DEADLINE) is False
        assert "burnt" in caplog.text
    assert len(Spool(tmp_path / "spool.jsonl").pending()) == 2
