"""The fan-out: what one call leaves in every sink, and what a broken sink leaves in the others."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from distforge.durable import AppendOnly
from distforge.errors import InputError
from distforge.reports.step1_summary import Step1Summary
from distforge.reports.tables import usage_table
from distforge.telemetry import RunLogger, TelemetryConfig, read_metrics
from distforge.telemetry import metrics as names
from tests.unit.reports.reinforcement_directory import make_probe
from tests.unit.reports.run_directory import make_summary
from tests.unit.telemetry.test_metrics import make_metrics
from tests.unit.telemetry.wandb_file import history, only_run_file, read_records

QUIET = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=0.0)


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_sink_gets_the_same(tmp_path: Path) -> None:
    console, config = plain(), TelemetryConfig(console_interval_seconds=0.0)
    metrics, expected = make_metrics()
    with RunLogger(tmp_path / "run", config, {"seed": 1}, "run", console=console) as logger:
        with logger.progress(2, "baking"):
            logger.log(1, {names.TRAIN_LOSS: torch.tensor(1.5)})  # type: ignore[dict-item]
            logger.log_baking_epoch(2, metrics)
        logger.show(usage_table(Step1Summary.parse(json.dumps(make_summary()))))
        logger.say("done")

    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (first.step, first.metrics) == (1, {names.TRAIN_LOSS: 1.5})
    assert (second.step, second.metrics) == (2, expected)
    rows = history(read_records(only_run_file(tmp_path / "run")))
    logged = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    assert logged == [{names.TRAIN_LOSS: 1.5}, expected]
    shown = output(console)
    for text in ("step 1/2  loss 1.5000", "step 2/2", "epoch 1", "converged: no", "done"):
        assert text in shown


def test_a_probe_is_a_record_and_a_line(tmp_path: Path) -> None:
    console = plain()
    with RunLogger(tmp_path, QUIET, {}, "run", console=console) as logger:
        logger.log_rl_probe(30, make_probe(30))
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record.step == 30
    assert tuple(record.metrics) == names.RL_METRICS
    assert record.metrics["rl/anti_theater_ablation"] == pytest.approx(0.51)
    assert output(console).startswith("episode 4,800  reward 0.650")


def test_a_disabled_logger_leaves_nothing(tmp_path: Path) -> None:
    console = plain()
    logger = RunLogger(tmp_path / "run", QUIET, {}, "run", enabled=False, console=console)
    with logger, logger.progress(1):
        logger.log(1, {names.TRAIN_LOSS: 1.0})
        logger.log_baking_epoch(1, make_metrics()[0])
        logger.log_rl_probe(1, make_probe(1))
        logger.say("unseen")
        logger.show(Table())
        logger.artifact(tmp_path, "a", "b")
    assert list(tmp_path.iterdir()) == []
    assert output(console) == ""


SCRIPT = """
import sys
from pathlib import Path
from distforge.telemetry import RunLogger, TelemetryConfig
config = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=0.0)
with RunLogger(Path(sys.argv[1]), config, {}, "run") as logger, logger.progress(3):
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0})
    logger.say("unheard")
"""


def test_a_closed_output_ends_neither_the_run_nor_the_file(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # What `distforge ... | head` leaves of the standard output.
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(write_end)
    assert done.returncode == 0, done.stderr
    assert [r.step for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert done.stderr.count("console logging stopped (BrokenPipeError") == 1


def test_a_full_disk_stops_neither_the_run_nor_the_console(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    console = plain()
    logger = RunLogger(tmp_path, QUIET, {}, "run", console=console)
    logger._file.close()
    # Every write to /dev/full fails as on a full disk.
    logger._file._lines = AppendOnly(Path("/dev/full"), synced=False)
    with caplog.at_level(logging.WARNING), logger, logger.progress(2):
        logger.log(1, {names.TRAIN_LOSS: 1.0})
        logger.log(2, {names.TRAIN_LOSS: 1.0})
    assert caplog.text.count("metrics.jsonl logging stopped (OSError") == 1
    assert "No space left on device: '/dev/full'" in caplog.text
    assert "step 2/2" in output(console)


def test_an_error_of_the_run_passes_through(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, QUIET, {}, "run", console=plain())
    with pytest.raises(RuntimeError, match="the run's own"), logger, logger.progress(2):
        raise RuntimeError("the run's own")
    with pytest.raises(TypeError, match="train/loss"):
        RunLogger(tmp_path, QUIET, {}, "run", console=plain()).log(
            1,
            {names.TRAIN_LOSS: "low"},  # type: ignore[dict-item]
        )


def test_unusable_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run's name"):
        RunLogger(tmp_path / "run", QUIET, {}, "../run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="wandb_project"):
        TelemetryConfig(wandb_project="a/b")
    with pytest.raises(InputError, match="tag"):
        TelemetryConfig(tags=("a b",))
    for interval in (-1.0, float("nan")):
        with pytest.raises(InputError, match="console_interval_seconds"):
            TelemetryConfig(console_interval_seconds=interval)
    with pytest.raises(InputError, match="wandb_mode"):
        TelemetryConfig(wandb_mode="sometimes")  # type: ignore[arg-type]
