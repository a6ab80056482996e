"""``metrics.jsonl``, written and read back."""

import errno
import io
import json
import logging
import math
from datetime import datetime
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.telemetry import read_metrics
from distforge.telemetry.jsonl import MetricsWriter


class Clock:
    """Seconds that grow only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


GOOD = '{"step": 1, "time": "2026-01-01T00:00:00.000Z", "seconds": 0.5, "train/loss": 2.0}\n'


def test_a_record_is_one_flat_object_and_on_disk_at_once(tmp_path: Path) -> None:
    path, clock = tmp_path / "metrics.jsonl", Clock()
    writer = MetricsWriter(path, clock)
    clock.now += 2.5
    writer.write(7, {"train/loss": 1.25, "train/tokens": 3})
    record = json.loads(path.read_text())  # Not closed yet.
    stamp = datetime.fromisoformat(record.pop("time"))
    assert stamp.utcoffset() is not None
    assert record == {"step": 7, "seconds": 2.5, "train/loss": 1.25, "train/tokens": 3}
    writer.close()


def test_what_is_not_finite_stays_json_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (strict["a"], strict["b"], strict["c"]) == ("NaN", "Infinity", "-Infinity")
    (record,) = read_metrics(path)
    assert math.isnan(record.metrics["a"])
    assert (record.metrics["b"], record.metrics["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("value", ["1.0", None, True, [1.0]])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError, match="train/loss"):
        writer.write(1, {"train/loss": value})  # type: ignore[dict-item]
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_half_a_last_line_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + GOOD[:40])
    with caplog.at_level(logging.WARNING):
        (record,) = read_metrics(path)
    assert (record.step, record.seconds, record.metrics) == (1, 0.5, {"train/loss": 2.0})
    assert "ends in half a line (40 bytes)" in caplog.text


def test_a_resumed_run_counts_on_after_half_a_line(tmp_path: Path) -> None:
    path, clock = tmp_path / "metrics.jsonl", Clock()
    path.write_text(GOOD + GOOD[:40])
    writer = MetricsWriter(path, clock)
    clock.now += 1.0
    writer.write(2, {"train/loss": 1.5})
    writer.close()
    assert [(r.step, r.seconds) for r in read_metrics(path)] == [(1, 0.5), (2, 1.5)]


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{", "is not JSON"),
        ("[1]", "lacks one of"),
        ('{"step": 1}', "lacks one of"),
        (GOOD.strip().replace("1,", '"1",', 1), "wrong type"),
        (GOOD.strip().replace("2.0", "null"), "train/loss is None"),
        (GOOD.strip().replace("2.0", '"low"'), "train/loss is 'low'"),
        ("", "is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD}{line}\n{GOOD}")
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line 2.*{complaint}"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_after_a_full_disk_all_records_are_there_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(1, {"train/loss": 1.0})
    with monkeypatch.context() as full:
        fill_disk(full, writer)
        for step in (2, 3):
            with pytest.raises(OSError, match=r"No space left|Input/output"):
                writer.write(step, {"train/loss": 1.0})
    assert [r.step for r in read_metrics(path)] == [1]
    writer.write(4, {"train/loss": 1.0})
    writer.close()
    assert [r.step for r in read_metrics(path)] == [1, 2, 3, 4]


def fill_disk(patch: pytest.MonkeyPatch, writer: MetricsWriter) -> None:
    """Of each line three bytes fit, and they cannot be taken back either."""
    assert writer._lines is not None

    class Full(io.FileIO):
        def write(self, content: bytes) -> int:  # type: ignore[override]
            super().write(content[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.EIO, "Input/output error")

    patch.setattr(writer._lines, "_stream", Full(writer._path, "a+b"))


def test_a_file_that_cannot_be_opened_yet(tmp_path: Path) -> None:
    path = tmp_path / "later" / "metrics.jsonl"
    writer = MetricsWriter(path)
    with pytest.raises(FileNotFoundError):
        writer.write(1, {"train/loss": 1.0})
    path.parent.mkdir()
    writer.write(2, {"train/loss": 1.0})
    writer.close()
    assert [r.step for r in read_metrics(path)] == [1, 2]


def test_what_never_fits_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsWriter(tmp_path / "no" / "metrics.jsonl")
    for step in (1, 2):
        with pytest.raises(FileNotFoundError):
            writer.write(step, {"train/loss": 1.0})
    with caplog.at_level(logging.WARNING):
        writer.close()
        writer.close()
    assert caplog.text.count("lacks 2 records") == 1


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1}', '{"seconds": "x"}'])
def test_a_damaged_last_line_ends_no_run(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD}{line}\n")
    writer = MetricsWriter(path, Clock())
    writer.write(2, {"train/loss": 1.0})
    writer.close()
    assert json.loads(path.read_text().splitlines()[-1])["seconds"] == 0.0
