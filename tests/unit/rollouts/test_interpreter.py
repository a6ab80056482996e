"""The interpreter that has vLLM: what of it is checked before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.rollouts import RolloutConfig, open_pool
from distforge.rollouts.engines.interpreter import prepared, require_interpreter
from tests.unit.rollouts.engines import TinyEngine, requests

HERE = {
    "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    "ray": version("ray"),
    "missing": [],
}


def config(python: Path | str, **changes: object) -> RolloutConfig:
    return RolloutConfig(engine="vllm", num_actors=1, python=str(python), **changes)  # type: ignore[arg-type]


def interpreter(folder: Path, script: str) -> Path:
    """A program in the place of one."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def saying(folder: Path, **changes: object) -> Path:
    return interpreter(folder, f"echo '{json.dumps({**HERE, **changes})}'")


def test_one_that_has_all_is_taken(tmp_path: Path) -> None:
    require_interpreter(config(saying(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"missing": ["vllm", "xxhash"]}, "lacks vllm, xxhash, so it cannot run vLLM"),
        ({"ray": "2.1.0"}, f"has Ray 2.1.0 and the learner Ray {HERE['ray']}"),
        ({"ray": ""}, r"has Ray \(none\) and the learner"),
        ({"python": "3.9"}, f"has Python 3.9 and the learner Python {HERE['python']}"),
    ],
)
def test_what_it_lacks_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        require_interpreter(config(saying(tmp_path, **changes)))
    assert "`make vllm` makes" in str(caught.value)


def test_one_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"rollouts.python is '/none/python', which is not there"):
        require_interpreter(config("/none/python"))


@pytest.mark.parametrize("script", ["echo no Python >&2; exit 4", "echo hello", "exit 3"])
def test_one_that_is_none(tmp_path: Path, script: str) -> None:
    with pytest.raises(InputError, match="does not run as a Python interpreter") as caught:
        require_interpreter(config(interpreter(tmp_path, script)))
    assert "\n" not in str(caught.value)


def test_one_that_may_not_be_started(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"does not run as a Python interpreter: .*denied"):
        require_interpreter(config(path))


def test_what_this_process_finds_by_a_variable_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's own interpreter has no vLLM, whatever lies in its PYTHONPATH."""
    (tmp_path / "vllm.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="lacks vllm, so it cannot run vLLM"):
        require_interpreter(config(sys.executable))


def test_a_pool_refuses_before_it_starts_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distforge.rollouts.cluster.connected", pytest.fail)
    with (
        pytest.raises(InputError, match="is not there"),
        open_pool(config("/none/python"), TinyEngine, lambda step: requests(step, 1), 1),
    ):
        pytest.fail("it opened")


@pytest.mark.parametrize("address", ["auto", "10.0.0.9:6379"])
def test_other_machines_are_not_judged_from_here(address: str) -> None:
    require_interpreter(config("/none/python", address=address))


def test_the_actors_find_distforge_and_nothing_beside_it(tmp_path: Path) -> None:
    with prepared(config(sys.executable)) as environment:
        assert environment["py_executable"] == sys.executable
        folder = environment["env_vars"]["PYTHONPATH"]
        assert os.listdir(folder) == ["distforge"]
        done = subprocess.run(
            [sys.executable, "-c", "import distforge.errors as e; print(e.__file__)"],
            env={**os.environ, "PYTHONPATH": folder},
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        assert done.stdout.startswith(folder)
    assert not Path(folder).exists()


def test_the_engine_of_the_learner_needs_no_other_environment() -> None:
    require_interpreter(RolloutConfig(num_actors=1))
    with prepared(RolloutConfig(num_actors=1)) as environment:
        assert environment == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "trt"}, "rollouts.engine is 'trt'; expected one of hf, vllm"),
        ({"engine": "vllm"}, "vLLM runs in actors alone; set num_actors to 1"),
        ({"python": "/x", "num_actors": 1}, "runs in the learner's interpreter; set engine to"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RolloutConfig(**settings)  # type: ignore[arg-type]
