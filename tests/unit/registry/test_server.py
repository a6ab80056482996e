"""How MLflow's server is started: what is on its command line, and what is not."""

import re
import signal
import stat
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry.server import (
    SOURCE_PATTERN,
    ServeConfig,
    serve,
    server_command,
    server_environment,
)

PASSWORD = "a long enough password"


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTFORGE_REGISTRY_PASSWORD", raising=False)


def test_loopback_by_default(tmp_path: Path) -> None:
    command = server_command(ServeConfig(), tmp_path)
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--workers") == "1"
    assert option(command, "--backend-store-uri") == f"sqlite:///{tmp_path}/registry.db"
    assert option(command, "--artifacts-destination") == str(tmp_path / "artifacts")
    assert "127.0.0.1:5000" in option(command, "--allowed-hosts").split(",")
    assert "--app-name" not in server_command(ServeConfig(token=False), tmp_path)
    environment = server_environment(ServeConfig(token=False), tmp_path)
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX"] == SOURCE_PATTERN
    assert list(tmp_path.iterdir()) == []


def test_open_to_others_with_a_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    config = ServeConfig(
        host="0.0.0.0",
        allowed_hosts=("models.example.org", "*.cluster.local"),
        password_file=file,
        backend="postgresql://registry@db/models",
        artifacts="s3://bucket/models",
    )
    command = server_command(config, tmp_path)
    assert option(command, "--app-name") == "basic-auth"
    assert option(command, "--backend-store-uri") == "postgresql+psycopg2://registry@db/models"
    assert option(command, "--artifacts-destination") == "s3://bucket/models"
    assert PASSWORD not in " ".join(command)
    names = option(command, "--allowed-hosts").split(",")
    assert {"models.example.org", "models.example.org:5000", "*.cluster.local"} <= set(names)
    first, second = (server_environment(config, tmp_path) for _ in range(2))
    assert first["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert first["MLFLOW_FLASK_SERVER_SECRET_KEY"] == second["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    assert len(first["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
    assert "admin_password" not in (tmp_path / "auth.ini").read_text()


def test_the_pattern_takes_what_the_server_itself_stores() -> None:
    stored = f"mlflow-artifacts:/12/{'0a' * 16}/artifacts/model"
    assert re.search(SOURCE_PATTERN, stored)


@pytest.mark.parametrize("python", ["absent/python", "{here}"], ids=["absent", "a folder"])
def test_an_interpreter_that_cannot_be_started_is_named(tmp_path: Path, python: str) -> None:
    config = ServeConfig(directory=tmp_path / "s", python=python.format(here=tmp_path))
    with pytest.raises(InputError, match=r"--python .* cannot be started: .*; name an interpreter"):
        serve(config)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_server_is_said(tmp_path: Path) -> None:
    config = ServeConfig(directory=tmp_path / "s", python="/bin/false")
    with pytest.raises(InputError, match=r"distforge\[server\]"):
        serve(config)
    assert not (tmp_path / "s").exists()


def test_loopback_asks_for_a_token_of_this_user_alone(tmp_path: Path) -> None:
    config = ServeConfig()
    command = server_command(config, tmp_path)
    assert option(command, "--app-name") == "basic-auth"
    first, second = (server_environment(config, tmp_path) for _ in range(2))
    token = (tmp_path / "token").read_text().strip()
    assert len(token) >= 32
    assert first["MLFLOW_AUTH_ADMIN_PASSWORD"] == second["MLFLOW_AUTH_ADMIN_PASSWORD"] == token
    assert first["MLFLOW_AUTH_ADMIN_USERNAME"] == "distforge"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert token not in " ".join(command) + (tmp_path / "auth.ini").read_text()


def test_what_is_relative_is_meant_from_where_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter's name, and the files that the environment names for the server."""
    here = tmp_path / "here"
    here.mkdir()
    program = here / "python"
    program.write_text('#!/bin/sh\n[ "$1" = -c ] || cat "$PGPASSFILE" > seen\n', encoding="utf-8")
    program.chmod(0o755)
    (here / "pgpass").write_text("db:5432", encoding="utf-8")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PGPASSFILE", "pgpass")
    monkeypatch.setattr(signal, "signal", lambda _number, _handler: None)
    config = ServeConfig(
        directory=Path("../store"), python="./python", backend="postgresql://r@db/m", token=False
    )
    assert serve(config) == 0
    assert (here / "seen").read_text(encoding="utf-8") == "db:5432"


@pytest.mark.parametrize(
    ("backend", "file"), [("", "registry.db"), ("sqlite:///mine.db", "mine.db")]
)
def test_a_file_of_the_backend_lies_in_the_servers_folder(
    tmp_path: Path, backend: str, file: str
) -> None:
    command = server_command(ServeConfig(backend=backend), tmp_path)
    assert f"sqlite:///{tmp_path / file}" in command
