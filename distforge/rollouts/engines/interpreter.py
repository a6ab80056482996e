"""The interpreter of an engine that has an environment of its own.

Its actors need from distforge what `distforge.rollouts.actor` imports, which wants torch, numpy and
xxhash beside Ray and the engine itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import distforge
from distforge.errors import InputError, first_line
from distforge.extras import MissingExtra
from distforge.rollouts.config import RolloutConfig

_PROBE_SECONDS = 120.0
# Looks for the packages without importing them, which would take many seconds.
_PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
try:
    ray = version("ray")
except PackageNotFoundError:
    ray = ""
wanted = ("vllm", "torch", "numpy", "xxhash")
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "ray": ray,
    "missing": [name for name in wanted if find_spec(name) is None],
}))
"""
_REMEDY = "`make vllm` makes .venv-vllm/bin/python, which has what it takes"


def interpreter(config: RolloutConfig) -> str:
    """Absolute, and where an environment has it: a link followed to the end leads out of it."""
    return os.path.abspath(os.path.expanduser(config.python)) if config.python else sys.executable


def require_interpreter(config: RolloutConfig) -> None:
    """Refuse an interpreter on this machine in which the engine's actors could not start.

    What other machines of a cluster have is seen only when an actor starts there.

    Raises:
        InputError: it is not there, does not run, or lacks a package or the versions for Ray.
    """
    if config.engine != "vllm" or config.address:
        return
    python = interpreter(config)
    if not Path(python).exists():
        raise InputError(f"rollouts.python is {config.python!r}, which is not there; {_REMEDY}")
    said = _ask(python)
    if missing := said["missing"]:
        raise InputError(f"{python} lacks {', '.join(missing)}, so it cannot run vLLM; {_REMEDY}")
    # Not from Ray itself, which is imported when what it reads then has been set.
    here = {"Ray": _ray_version(), "Python": ".".join(map(str, sys.version_info[:2]))}
    there = {"Ray": said["ray"], "Python": said["python"]}
    for what, own in here.items():
        if there[what] != own:
            raise InputError(
                f"{python} has {what} {there[what] or '(none)'} and the learner {what} {own}, "
                f"and Ray connects equal versions only; {_REMEDY}"
            )


def _ray_version() -> str:
    try:
        return version("ray")
    except PackageNotFoundError as error:
        raise MissingExtra("rollouts.engine 'vllm'", "ray", "rollouts") from error


@cache  # asked before a model is loaded, and when actors are started
def _ask(python: str) -> dict[str, Any]:
    # Its own packages are asked for, not what this process finds by a variable.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [python, "-c", _PROBE],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=_PROBE_SECONDS,
        )
        if done.returncode == 0:
            said: dict[str, Any] = json.loads(done.stdout)
            return said
        reason = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = first_line(error)
    raise InputError(f"{python} does not run as a Python interpreter: {reason}; {_REMEDY}")


@contextmanager
def prepared(config: RolloutConfig) -> Iterator[dict[str, Any]]:
    """What Ray has to be told of the actors' environment; it holds while the context is open.

    There distforge, and nothing that is installed beside it, is found by way of a folder that holds
    nothing else.
    """
    if config.engine != "vllm":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="distforge-") as folder:
        package = Path(distforge.__file__).resolve().parent
        Path(folder, package.name).symlink_to(package)
        yield {"py_executable": interpreter(config), "env_vars": {"PYTHONPATH": folder}}
