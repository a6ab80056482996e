"""Opens the MLflow store behind the registry, quietly, and says plainly why it cannot be used."""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distforge import durable
from distforge.errors import InputError, first_line
from distforge.locks import Held, exclusive
from distforge.registry.access import lend_token

SQLITE = "sqlite:///"
_SCHEMES = ("http", "https", "postgresql")
_EXPERIMENT = "distforge"
# What databases say when two writers met; both may try again.
_CONFLICTS = ("Giving up after", "database is locked", "could not serialize", "deadlock detected")
_CONFLICT_SECONDS = 60.0


class RegistryUnavailable(InputError):
    """The registry cannot be reached, or lets nobody in; the same call may succeed later."""


def is_server(uri: str | Path) -> bool:
    """Whether ``uri`` is a registry server's address, which keeps copies of the models."""
    return str(uri).startswith(("http://", "https://"))


def store_uri(uri: str | Path) -> str:
    """The MLflow URI of ``uri``: a path becomes that of an SQLite file, made absolute.

    Raises:
        InputError: it is empty, names a directory, has another scheme than sqlite, http, https and
            postgresql, or holds a password, which would end in logs and configurations.
    """
    text = str(uri)
    if "://" in text and not text.startswith(SQLITE):
        parts = urlsplit(text)
        if parts.scheme.partition("+")[0] not in _SCHEMES or not parts.hostname:
            raise InputError(
                f"the registry {text!r} is of no known kind; give the path of an SQLite file, or "
                "an http://, https:// or postgresql:// address"
            )
        if parts.password is not None or (parts.username and parts.scheme.startswith("http")):
            hidden = f"{parts.scheme}://…@{parts.hostname}"
            raise InputError(
                f"the registry {hidden!r} has credentials in its address, which would end in logs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or PGPASSFILE) instead"
            )
        return with_driver(text)
    plain = text.removeprefix(SQLITE)
    if not plain or Path(plain).is_dir() or "\0" in plain or plain.startswith("file:"):
        raise InputError(
            f"the registry {text!r} is not a file; give the path of an SQLite file such as "
            "runs/registry.db, or an address"
        )
    return f"{SQLITE}{Path(plain).absolute()}"


def with_driver(uri: str) -> str:
    """``uri`` with PostgreSQL's driver named: SQLAlchemy's default changed with its version 2.1."""
    return re.sub(r"\Apostgresql://", "postgresql+psycopg2://", uri)


def open_store(uri: str | Path, *, create: bool = True) -> Store:
    """The store at ``uri``; an SQLite file and its directory are made when absent.

    Making a new SQLite store takes about 3 s (MLflow runs its whole migration history), opening
    one well under a second, importing MLflow 1-2 s.

    Raises:
        InputError: ``uri`` cannot be a store, or is a file that is absent while ``create`` is off.
        RegistryUnavailable: the store cannot be opened.
    """
    resolved = store_uri(uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow's own patience (minutes of retries) belongs to the spool here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if is_server(resolved):
        lend_token(resolved)
    path = Path(resolved.removeprefix(SQLITE)) if resolved.startswith(SQLITE) else None
    if path is not None and not path.exists() and not create:
        raise InputError(f"there is no registry at {str(uri)!r}; give the --uri of one")
    import mlflow

    # After the import, which sets levels of its own; migrations would fill the screen, and so would
    # MLflow's tracebacks of errors that are raised here as well, in one sentence.
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with alone(path):
            if path is not None and not path.exists():
                _make(path, uri)
            store = Store(functools.partial(mlflow.MlflowClient, resolved, resolved), uri)
            store.search_registered_models(max_results=1)
    except (OSError, Held) as error:
        raise RegistryUnavailable(
            f"the registry {str(uri)!r} cannot be opened ({first_line(error)}); give another path"
        ) from error
    return store


@contextmanager
def new_database(path: Path) -> Iterator[Path]:
    """Where an SQLite file is made that becomes ``path`` when the block ends well: MLflow cannot go
    on with half a migration."""
    with durable.replacing(path) as partial:
        # A killed process's; SQLite would take it for that of the new file.
        partial.with_name(f"{partial.name}-journal").unlink(missing_ok=True)
        yield partial


def _make(path: Path, uri: str | Path) -> None:
    """A new store, whole or not at all."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with new_database(path) as partial:
        try:
            _migrate(partial)
        except (MlflowException, SQLAlchemyError) as error:
            raise _explained(error, uri) from error


def _migrate(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import NullPool, create_engine

    # Not by a client: MLflow keeps its connections for ever, and this file gets another name.
    _initialize_tables(create_engine(f"{SQLITE}{file}", poolclass=NullPool))


class Store:
    """An MLflow client whose failures are `RegistryUnavailable`, `InputError`, or MLflow's own
    RESOURCE_… answers; writers that met each other try again for up to a minute."""

    def __init__(self, connect: Callable[[], Any], uri: str | Path) -> None:
        self.uri = uri
        self._client = self._call(connect)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._call, getattr(self._client, name))

    def request(self, artifact_uri: str, method: str, path: str, **options: Any) -> Any:
        """One HTTP request for an artifact of the server's; its answer, of a good status."""
        return self._call(_request, str(self.uri), artifact_uri, method, path, **options)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        deadline = time.monotonic() + _CONFLICT_SECONDS
        while True:
            try:
                return method(*args, **kwargs)
            # The last are requests' errors, of `request`.
            except (MlflowException, SQLAlchemyError, OSError) as error:
                met = any(text in str(error) for text in _CONFLICTS)
                if not met or time.monotonic() > deadline:
                    raise _explained(error, self.uri) from error
            time.sleep(random.uniform(0.02, 0.2))


def _request(uri: str, artifact_uri: str, method: str, path: str, **options: Any) -> Any:
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    base = MlflowArtifactsRepository.resolve_uri(artifact_uri, uri)
    answer = http_request(get_default_host_creds(base), path, method, **options)
    augmented_raise_for_status(answer)
    return answer


# What a client says, behind the name of its connection pool, where it reaches no server.
_UNREACHED = {
    "Connection refused": "nothing listens there",
    "Failed to resolve": "its host's name is not known",
}


def _explained(error: Exception, uri: str | Path) -> Exception:
    code = getattr(error, "error_code", "")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if code.startswith("RESOURCE_DOES_NOT_EXIST") or code == "RESOURCE_ALREADY_EXISTS":
        return error
    plain = (words for sign, words in _UNREACHED.items() if sign in str(error))
    reason = next(plain, (str(error).splitlines() or [type(error).__name__])[0][:300])
    if (
        code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
        or status in (401, 403)
        or any(f"error code {refusal}" in reason for refusal in (401, 403))
    ):
        return RegistryUnavailable(
            f"the registry {str(uri)!r} does not let this user in ({reason}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who may, or "
            "DISTFORGE_REGISTRY_TOKEN to the token in the folder of a server on this machine"
        )
    for_good = status in (400, 404, 413) or code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    if for_good and is_server(uri):
        return InputError(f"the registry {str(uri)!r} refused: {reason}; correct what it names")
    fix = "see that it runs" if is_server(uri) else "give another path, or move the file aside"
    return RegistryUnavailable(f"the registry {str(uri)!r} cannot be used ({reason}); {fix}")


def experiment_id(store: Store, name: str = _EXPERIMENT) -> str:
    """The id of the experiment that holds the versions' metrics, made when absent."""
    found = store.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    resolved = store_uri(store.uri)
    location = None
    if resolved.startswith(SQLITE):
        # MLflow's own default is relative to whatever directory a process happens to be in.
        location = (Path(resolved.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
    try:
        return str(store.create_experiment(name, artifact_location=location))
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(store.get_experiment_by_name(name).experiment_id)


@contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """One process at a time: two that make the same SQLite file would both migrate it.

    Raises:
        Held: another one is at it for longer than a minute.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    with exclusive(lock, what=f"opening {path}", wait=_CONFLICT_SECONDS):
        yield


@functools.cache
def source_commit() -> str:
    """The git commit of this source tree, or an empty string when it is not a checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=package,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = found.stdout.splitlines()
    # Another repository around an installed package says nothing about this code.
    ours = found.returncode == 0 and len(lines) == 2 and Path(lines[0]) == package.parent
    return lines[1] if ours else ""
