"""W&B, read back from the offline run's file."""

import json
import logging
import socket
import sys
import time
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.telemetry import WandBLogger
from tests.unit.telemetry.test_metrics import make_metrics, make_rl_metrics
from tests.unit.telemetry.wandb_file import history, only_run_file, read_records


def test_exactly_the_seventeen_of_each_step_are_in_the_offline_run(tmp_path: Path) -> None:
    first, first_values = make_metrics(1.0)
    second, second_values = make_metrics(3.0)
    third, third_values = make_rl_metrics(5.0)
    config = {"optimizer": {"lr": 0.02}}
    with WandBLogger("project", "run", config, ["a", "b"], directory=tmp_path) as logger:
        assert logger.active
        logger.log_baking_epoch(first, step=10)
        logger.log_baking_epoch(second, step=20)
        logger.log_rl_probe(third, step=30)
    records = read_records(only_run_file(tmp_path))

    rows = history(records)
    assert [row["_step"] for row in rows] == [10, 20, 30]
    for row, expected in zip(rows, (first_values, second_values, third_values), strict=True):
        assert {key: value for key, value in row.items() if not key.startswith("_")} == expected
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, list(run.tags)) == ("project", "run", ["a", "b"])
    kept = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert kept["optimizer"] == {"lr": 0.02}
    (end,) = [r.exit for r in records if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0


def test_an_artifact_is_recorded_where_it_lies_and_a_failed_run_as_failed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"w" * 1000)
    logger = WandBLogger("project", "run", directory=tmp_path)
    logger.save_artifact(model, "baked", "model")
    logger.finish(exit_code=1)
    logger.finish()
    records = read_records(only_run_file(tmp_path))
    artifacts = [
        r.request.log_artifact.artifact if r.WhichOneof("record_type") == "request" else r.artifact
        for r in records
        if r.WhichOneof("record_type") == "artifact"
        or (
            r.WhichOneof("record_type") == "request"
            and r.request.WhichOneof("request_type") == "log_artifact"
        )
    ]
    (artifact,) = artifacts
    assert (artifact.name, artifact.type) == ("baked", "model")
    (content,) = artifact.manifest.contents
    assert (content.path, content.size) == ("weights", 1000)
    assert content.local_path == str(model / "weights")
    (end,) = [r.exit for r in records if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 1


def test_a_table_is_kept_with_the_metrics_of_its_step(tmp_path: Path) -> None:
    with WandBLogger("project", "run", directory=tmp_path) as logger:
        logger.log({"a": 1.0}, 5)
        logger.log_table("rl/answers", ["text", "reward"], [["é 13", 1.0], ["", None]], 5)
        assert logger.active
    (row,) = history(read_records(only_run_file(tmp_path)))
    assert (row["_step"], row["a"]) == (5, 1)
    assert (row["rl/answers/ncols"], row["rl/answers/nrows"]) == (2, 2)
    (file,) = tmp_path.glob("wandb/offline-run-*/files/" + row["rl/answers/path"])
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["columns"] == ["text", "reward"]
    assert kept["data"] == [["é 13", 1.0], ["", None]]


def test_disabled_imports_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = WandBLogger("project", "run", mode="disabled", directory=tmp_path)
    logger.log({"train/loss": 1.0}, 1)
    logger.save_artifact(tmp_path, "a", "b")
    logger.finish()
    assert not logger.active
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        logger = WandBLogger("project", "run", directory=tmp_path)
        for step in range(3):
            logger.log({"train/loss": 1.0}, step)
        logger.finish()
    (message,) = [r.getMessage() for r in caplog.records if r.name == "distforge.telemetry.guard"]
    assert "W&B" in message
    assert "ImportError" in message or "ModuleNotFoundError" in message


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            logger = WandBLogger(
                "project", "run", mode="online", directory=tmp_path, deadline_seconds=2.0
            )
            logger.log({"train/loss": 1.0}, 1)
            logger.finish()
        # Starting W&B's service process is not under its deadline; a busy machine needs a while.
        assert time.monotonic() - began < 60.0
    assert not logger.active
    assert "the run continues without it" in caplog.text


def test_a_failing_call_makes_it_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = WandBLogger("project", "run", directory=tmp_path)
    run = logger._run
    calls = []

    def broken(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise OSError("the disk\nis full")

    monkeypatch.setattr(run, "log", broken)
    try:
        with caplog.at_level(logging.WARNING):
            logger.log({"train/loss": 1.0}, 1)
            logger.log({"train/loss": 1.0}, 2)
        assert len(calls) == 1
        assert not logger.active
        assert "W&B logging stopped (OSError: the disk is full)" in caplog.text
    finally:
        run.finish()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden", "a\n", "x" * 129])
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="project"):
        WandBLogger(name or "/", "run", mode="disabled")
    with pytest.raises(InputError, match="W&B name"):
        WandBLogger("project", name or "/", mode="disabled")
    with pytest.raises(InputError, match="tag"):
        WandBLogger("project", "run", tags=[name], mode="disabled")
    with pytest.raises(InputError, match="artifact name"):
        WandBLogger("project", "run", mode="disabled").save_artifact(tmp_path, name, "model")


def test_unusable_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of offline, online, disabled"):
        WandBLogger("project", "run", mode="sometimes")  # type: ignore[arg-type]
    for deadline in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="deadline_seconds"):
            WandBLogger("project", "run", mode="disabled", deadline_seconds=deadline)
    with pytest.raises(InputError, match="does not exist"):
        WandBLogger("project", "run", mode="disabled").save_artifact(tmp_path / "no", "a", "b")


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    for step in (1, 2):
        with WandBLogger("project", "run", directory=tmp_path) as logger:
            logger.log({"train/loss": 1.0}, step)
    kept = (tmp_path / "wandb.id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    runs = [r.run for f in files for r in read_records(f) if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {kept}
    assert sum(len(history(read_records(f))) for f in files) == 2


@pytest.mark.parametrize(
    "given, expected",
    [
        (("", "", ""), ("of-env", "env-name", "env-id")),
        (("explicit", "named", "offline"), ("explicit", "named", "env-id")),
    ],
)
def test_what_is_given_comes_before_the_environment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, str, str],
    expected: tuple[str, ...],
) -> None:
    variables = {"PROJECT": "of-env", "NAME": "env-name", "ENTITY": "env-team", "RUN_ID": "env-id"}
    variables |= {"DIR": str(tmp_path / "elsewhere"), "MODE": "dryrun"}
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    project, name, mode = given
    with WandBLogger(project, name, mode=mode, directory=tmp_path / "run") as logger:  # type: ignore[arg-type]
        assert logger._run.entity == "env-team"
    records = read_records(only_run_file(tmp_path / "elsewhere"))
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_id) == expected
    assert (tmp_path / "run" / "wandb.id").read_text() == "env-id\n"


@pytest.mark.parametrize("variable, value", [("MODE", "disabled"), ("DISABLED", "true")])
def test_the_environment_turns_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"WANDB_{variable}", value)
    assert not WandBLogger("project", "run", directory=tmp_path).active
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_of_the_environment_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        WandBLogger("project", "run", directory=tmp_path)
    assert "WANDB_MODE is 'sometimes'; expected online, offline or disabled" in caplog.text
