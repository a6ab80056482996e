"""docs/registry.md: one serves the registry, another sends a run there, a third fetches its model.

The page's host, database and bucket are a reader's own: here they are this machine and a folder.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED
from tests.documented import command
from tests.documented_folder import environment, run
from tests.faults.registry_server import answers, server_python, wait_for
from tests.free_port import free_port

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/registry.md"
PASSWORD = "correct horse battery"
MEMBER = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}


@contextmanager
def serving(folder: Path, line: str, port: int, password: str = "") -> Iterator[str]:
    """The address of what the line starts."""
    program = folder / ".venv-server" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{server_python()}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    settings = {"DISTFORGE_REGISTRY_PASSWORD": password} if password else {}
    line = line.removeprefix("DISTFORGE_REGISTRY_PASSWORD=... ")
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} --port {port}"],
        cwd=folder,
        env={**environment(folder), **settings},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(url), "the registry", process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_serve_the_registry_to_a_team(folder: Path) -> None:
    line = command(PAGE, "distforge registry serve --host 0.0.0.0")
    assert line.startswith("DISTFORGE_REGISTRY_PASSWORD=... ")
    for theirs, ours in (
        ("--backend postgresql://registry@db/models", ""),
        ("--artifacts s3://bucket/models", ""),
        ("models.example.org", "127.0.0.1"),
    ):
        assert theirs in line
        line = line.replace(theirs, ours)
    with serving(folder, line, free_port(), PASSWORD) as url:
        bake = command(PAGE, "distforge bake --config configs/single_gpu.toml")
        bake = bake.replace("http://models.example.org:5000", url)
        there = {"DISTFORGE_REGISTRY_URI": url}
        refused = run(folder, "distforge registry list", environment=there)
        assert refused.returncode == 2
        assert "password" in refused.stderr.casefold()
        sent = run(folder, f"{bake} --champion.path champions/quick", environment=MEMBER)
        assert sent.returncode == GOAL_MISSED, sent.stdout + sent.stderr
        shown = run(folder, command(PAGE, "distforge registry show"), environment=MEMBER | there)
        assert shown.returncode == 0, shown.stdout + shown.stderr
    made = folder / "runs" / "single-gpu" / "model" / "model.safetensors"
    fetched = folder / "some" / "directory" / "model.safetensors"
    assert fetched.read_bytes() == made.read_bytes()


def test_serve_the_registry_on_loopback(folder: Path) -> None:
    """The token is found by this user's commands themselves."""
    line = command(PAGE, "distforge registry serve --python")
    with serving(folder, line, free_port()) as url:
        done = run(folder, "distforge registry list", environment={"DISTFORGE_REGISTRY_URI": url})
        assert done.returncode == 0, done.stdout + done.stderr
