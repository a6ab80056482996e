"""A real registry server (and a real PostgreSQL) for a test, on loopback, ended by its id."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.free_port import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
PASSWORD = "correct horse battery"
PYTHON_VARIABLE = "DISTFORGE_SERVER_PYTHON"


@functools.cache
def server_python() -> str:
    """An interpreter with MLflow's server; the test is skipped, loudly, where there is none."""
    for python in (
        os.environ.get(PYTHON_VARIABLE, ""),
        str(ROOT / ".venv-server" / "bin" / "python"),
        sys.executable,
    ):
        if python and Path(python).exists():
            probe = [python, "-c", "import flask, flask_wtf, psycopg2, mlflow.server"]
            if subprocess.run(probe, capture_output=True, timeout=120).returncode == 0:
                return python
    pytest.skip(
        "NOT TESTED against a real registry server: no interpreter has distforge[registry-server]; "
        f"run `make server`, or name one in {PYTHON_VARIABLE}"
    )


def wait_for(ready, what: str, process: subprocess.Popen, seconds: float = START_SECONDS) -> None:
    """Poll ``ready`` until it is true; fails when the process ends or the deadline passes."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise AssertionError(f"{what} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} was not ready after {seconds:.0f} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)


def answers(url: str) -> bool:
    """Whether a server is there at all; a refusal is an answer too."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextlib.contextmanager
def running_server(
    directory: Path, *, port: int = 0, password: str = "", backend: str = ""
) -> Iterator[str]:
    """The address of ``launch/registry.py``'s server; it keeps its state in ``directory``."""
    port = port or free_port()
    command = [sys.executable, str(ROOT / "launch" / "registry.py"), "--port", str(port)]
    command += ["--directory", str(directory), "--python", server_python()]
    if backend:
        command += ["--backend", backend]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DISTFORGE_REGISTRY_PASSWORD", None)
    if password:
        environment["DISTFORGE_REGISTRY_PASSWORD"] = password
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "server.log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(url), f"the registry server (see {directory})", process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_postgres() -> Path:
    """The directory of PostgreSQL's programs; skips, loudly, where it is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists():
            return place
    pytest.skip(
        "NOT TESTED against PostgreSQL: initdb is not installed; install the package postgresql"
    )


@contextlib.contextmanager
def running_postgres(directory: Path) -> Iterator[str]:
    """The address of an empty database, on loopback, without a password."""
    programs = find_postgres()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    directory.mkdir(parents=True)
    if user:
        shutil.chown(directory, user)
        for parent in directory.parents:  # pytest's own folders are closed to other users
            if parent.owner() == "root" and parent != Path("/") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    data, port = directory / "data", free_port()
    make = [str(programs / "initdb"), "-D", str(data), "-U", "registry", "-A", "trust", "-N"]
    subprocess.run(make, user=user, cwd=directory, check=True, capture_output=True, timeout=120)
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-F"]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={directory}"]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, user=user, cwd=directory, stdout=log, stderr=log)
    probe = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    try:
        wait_for(lambda: subprocess.run(probe, timeout=30).returncode == 0, "PostgreSQL", process)
        yield f"postgresql://registry@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
