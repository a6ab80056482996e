"""Half a line at the end of each file that is only appended to: it alone is lost, and only it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from distforge.durable import read_lines
from distforge.registry.events import EventLog
from distforge.registry.spool import Spool
from distforge.telemetry import read_metrics
from distforge.telemetry.jsonl import MetricsWriter
from distforge.training.distributed import World
from distforge.training.engine import StepResult
from distforge.training.guards import GuardConfig, NonFiniteLossError, StepGuard

ALONE = World(0, 0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class LineFile:
    """A file of the product: ``append`` adds a record with a number, ``read`` gives all numbers."""

    append: Callable[[Path, int], None]
    read: Callable[[Path], list[int]]


def write_metric(path: Path, number: int) -> None:
    writer = MetricsWriter(path)
    writer.write(number, {"train/loss": 1.5})
    writer.close()


def skip_step(path: Path, number: int) -> None:
    result = StepResult(float("nan"), 1.0, 1e-3, 0.5, 0)
    guard = StepGuard(GuardConfig(), ALONE, path)
    guard.skip(number, NonFiniteLossError("the loss is nan", result), [["exämple"]])


def note_model(path: Path, number: int) -> None:
    Spool(path).register(2, number, "champion", path.parent, {"note": "ü"})


def settle_model(path: Path, number: int) -> None:
    spool = Spool(path)
    spool._write({"done": spool.register(2, number, "champion", path.parent, {}), "version": "a/1"})


def log_event(path: Path, number: int) -> None:
    EventLog(path).append("promote", version="champion/1", number=number)


FILES = {
    "metrics.jsonl": LineFile(write_metric, lambda path: [r.step for r in read_metrics(path)]),
    "skipped.jsonl": LineFile(
        skip_step, lambda path: [json.loads(line)["step"] for line in read_lines(path)]
    ),
    "registry.spool.jsonl": LineFile(
        note_model, lambda path: [entry["step"] for entry in Spool(path).pending()]
    ),
    "registry.events.jsonl": LineFile(
        log_event, lambda path: [event["number"] for event in EventLog(path).read()]
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_byte_of_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path, file = tmp_path / name, FILES[name]
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # time, not what is tested
    for number in (1, 2, 3):
        file.append(path, number)
    whole = path.read_bytes()
    before = whole[: whole.rindex(b"\n", 0, -1) + 1]
    assert before.count(b"\n") == 2
    for length in range(len(before), len(whole)):
        path.write_bytes(whole[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert file.read(path) == [1, 2]
        half = f"{path} ends in half a line ({length - len(before)} bytes), left out"
        assert [r.getMessage() for r in caplog.records] == [half] * (length > len(before))
        file.append(path, 4)
        assert file.read(path) == [1, 2, 4]
        content = path.read_bytes()
        assert content.startswith(before)
        [line] = content.removeprefix(before).splitlines(keepends=True)
        assert line.endswith(b"}\n")
        json.loads(line)


def test_an_outcome_that_was_cut_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "registry.spool.jsonl"
    note_model(path, 1)
    settle_model(path, 2)
    whole = path.read_bytes()
    before = whole.rindex(b"\n", 0, -1) + 1
    for length in (before, before + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert [entry["step"] for entry in Spool(path).pending()] == [1, 2]
    path.write_bytes(whole)
    assert [entry["step"] for entry in Spool(path).pending()] == [1]


def test_a_spool_in_which_an_earlier_version_went_on_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "registry.spool.jsonl"
    note_model(path, 1)
    with open(path, "ab") as stream:
        stream.write(b'{"key": "torn", "op": "regis\n')
    note_model(path, 2)
    assert [entry["step"] for entry in Spool(path).pending()] == [1, 2]
