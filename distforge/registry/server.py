"""The central registry: how MLflow's server is started so that it is safe by default.

On loopback a token is made, which this user's clients find by themselves (see `access`). Any other
address demands a password of the user's own, the host names that the server answers to, and is
refused without them. Versions can only be made of files that were
uploaded to the server: a source elsewhere (``file:///etc``) is refused by pattern.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distforge import durable
from distforge.errors import InputError, first_line, require_name
from distforge.registry.access import (
    SECRET_MODE,
    TOKEN_FILE,
    TOKEN_USER,
    announced,
    make_token,
)
from distforge.registry.server_databases import Kind, make_databases
from distforge.registry.store import SQLITE, with_driver

PASSWORD_VARIABLE = "DISTFORGE_REGISTRY_PASSWORD"
MINIMUM_PASSWORD = 12
SOURCE_PATTERN = r"\Amlflow-artifacts:/[0-9A-Za-z]+/[0-9a-f]{32}/artifacts/model\Z"
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\]")
_BACKEND = re.compile(r"(sqlite:///|postgresql(\+[a-z0-9]+)?://)\S+")
_ARTIFACTS = re.compile(r"(s3|gs|wasbs|abfss)://\S+")


@dataclass(frozen=True)
class ServeConfig:
    """Start the central registry: MLflow's server, in the foreground.

    host: the address to listen on. Other than loopback needs a password and ``allowed_hosts``.
    port: the port to listen on.
    directory: where the server keeps its database, files and users.
    backend: its database, ``postgresql://user@host/name`` (the password in PGPASSFILE) or
        ``sqlite:///…``, a relative file in ``directory``; by default one there.
    artifacts: where copies of models go: ``s3://bucket/path`` (or gs, wasbs, abfss); by default
        ``directory``.
    allowed_hosts: names that clients may call the server by, such as models.example.org.
    user: the administrator's name.
    password_file: a file with the administrator's password, which may instead be in the variable
        DISTFORGE_REGISTRY_PASSWORD. There is no default.
    token: without a password, require the token in ``directory``; --no-token lets every user of
        this machine in.
    python: the interpreter that has the extra distforge[server]; by default this one.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    directory: Path = Path("registry-server")
    backend: str = ""
    artifacts: str = ""
    allowed_hosts: tuple[str, ...] = ()
    user: str = "admin"
    password_file: Path | None = None
    token: bool = True
    python: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"port is {self.port}; expected 1 to 65535")
        require_name("user", self.user)
        _is_loopback(self.host)
        for name in self.allowed_hosts:
            if not _HOST.fullmatch(name):
                raise InputError(
                    f"allowed_hosts has {name!r}; expected host names, without '*' alone: every "
                    "name would be a way in for another site's pages"
                )
        if self.backend and not _BACKEND.fullmatch(self.backend):
            raise InputError(f"backend is {self.backend!r}; expected sqlite:///… or postgresql://…")
        if re.search(r"://[^/@]*:[^/@]*@", self.backend):
            raise InputError(
                "backend has a password in it, which every user of this machine could read from "
                "the list of processes; put it into the file that PGPASSFILE names"
            )
        if self.artifacts and not _ARTIFACTS.fullmatch(self.artifacts):
            raise InputError(
                f"artifacts is {self.artifacts!r}; expected s3://…, gs://…, wasbs://… or abfss://…"
            )


def server_command(config: ServeConfig, directory: Path) -> list[str]:
    """MLflow's command line; nothing secret is in it."""
    backend = with_driver(_backend(config, directory))
    command = [config.python or sys.executable, "-m", "mlflow", "server"]
    command += ["--host", config.host, "--port", str(config.port), "--workers", "1"]
    command += ["--backend-store-uri", backend]
    command += ["--artifacts-destination", config.artifacts or str(directory / "artifacts")]
    names = [*config.allowed_hosts] or ["127.0.0.1", "localhost", "[::1]"]
    command += ["--allowed-hosts", ",".join(f"{name},{name}:{config.port}" for name in names)]
    if read_password(config) or config.token:
        command += ["--app-name", "basic-auth"]
    return command


def _backend(config: ServeConfig, directory: Path) -> str:
    backend = config.backend or f"{SQLITE}registry.db"
    # Said in full: the server runs where the command was given, where paths in the environment
    # (PGPASSFILE, a cloud's credentials) and an interpreter's relative name are meant.
    if backend.startswith(SQLITE):
        return f"{SQLITE}{directory / backend.removeprefix(SQLITE)}"
    return backend


def _users_file(config: ServeConfig, directory: Path) -> Path:
    # Users of their own: MLflow keeps an administrator's first password for ever.
    return directory / ("users.db" if read_password(config) else "token-users.db")


def _databases(config: ServeConfig, directory: Path) -> dict[Kind, Path]:
    """The SQLite files that the server will open."""
    backend, files = _backend(config, directory), dict[Kind, Path]()
    if backend.startswith(SQLITE):
        files["models"] = Path(backend.removeprefix(SQLITE))
    if read_password(config) or config.token:
        files["users"] = _users_file(config, directory)
    return files


def server_environment(config: ServeConfig, directory: Path) -> dict[str, str]:
    """What MLflow's server reads from its environment, secrets included.

    Writes the server's users' configuration and its cookie key into ``directory``, readable by
    this user alone.
    """
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": SOURCE_PATTERN,
    }
    password, user = read_password(config), config.user
    if not password and config.token:
        password, user = make_token(directory), TOKEN_USER
    if password:
        key = directory / "cookie.key"
        if not key.exists():
            durable.write_text(key, secrets.token_hex(32), mode=SECRET_MODE)
        users = f"{SQLITE}{_users_file(config, directory)}"
        described = directory / "auth.ini"
        durable.write_text(
            described,
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {users}\nadmin_username = {user}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            # Checking a password takes 0.2 s on purpose; the one worker sees changes at once.
            "auth_cache_ttl_seconds = 60\n",
            mode=SECRET_MODE,
        )
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(described),
            "MLFLOW_AUTH_ADMIN_USERNAME": user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(encoding="utf-8"),
        }
    return environment


def read_password(config: ServeConfig) -> str:
    """The administrator's password, or an empty string: there is none.

    Raises:
        InputError: it cannot be read, is too short, or is missing where the server listens to more
            than this machine.
    """
    password = os.environ.get(PASSWORD_VARIABLE, "")
    source = PASSWORD_VARIABLE
    if config.password_file is not None:
        source = str(config.password_file)
        try:
            password = config.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the password file {source} cannot be read ({first_line(error)})"
            ) from error
    exposed = not _is_loopback(config.host)
    if exposed and not (password and config.allowed_hosts):
        raise InputError(
            f"host is {config.host!r}, which others reach; set a password ({PASSWORD_VARIABLE} or "
            "--password-file) and --allowed-hosts, or listen on 127.0.0.1"
        )
    if (password or config.password_file is not None) and len(password) < MINIMUM_PASSWORD:
        raise InputError(
            f"the password in {source} has {len(password)} characters; use at least "
            f"{MINIMUM_PASSWORD}"
        )
    return password


def serve(config: ServeConfig) -> int:
    """Run the server until it ends or this process is told to stop; its exit status.

    Raises:
        InputError: the configuration is unsafe, MLflow's server is not installed, or it cannot
            make its databases.
    """
    directory = config.directory.absolute()
    command = server_command(config, directory)  # refuses before anything is written
    _require_server(command[0])
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = {**os.environ, **server_environment(config, directory)}
    how = f"; user {TOKEN_USER}, password in {directory / TOKEN_FILE}"
    secret = how if config.token and not read_password(config) else ""
    environment.pop(PASSWORD_VARIABLE, None)
    where = f"http://{config.host}:{config.port}"
    make_databases(command[0], _databases(config, directory))
    print(f"registry on {where}, kept in {directory}{secret}", flush=True)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: process.terminate())
    try:
        with announced(config.port, directory) if secret else contextlib.nullcontext():
            return max(0, process.wait())
    finally:
        # MLflow's own launcher starts the server as a child; none of them may outlive this.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _require_server(python: str) -> None:
    probe = "import flask, mlflow.server"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, timeout=120)
    except OSError as error:
        raise InputError(
            f"--python {python} cannot be started: {error.strerror}; name an interpreter that has "
            "MLflow's server, such as .venv-server/bin/python after `make server`"
        ) from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{python} did not load MLflow's server within two minutes; try `{python} -c '{probe}'`"
        ) from None
    if found.returncode != 0:
        raise InputError(
            f"{python} has no MLflow server; pip install 'distforge[server]', or name "
            "an interpreter that has it with --python"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputError(f"host is {host!r}; expected an IP address or localhost") from None
