"""Opens the MLflow store behind the registry, quietly and without a network."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from distforge.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_EXPERIMENT = "distforge"


def store_uri(uri: str | Path) -> str:
    """The MLflow URI of ``uri``: a path becomes that of an SQLite file, made absolute.

    Raises:
        InputError: it is empty or names a directory.
    """
    text = str(uri)
    if "://" in text and not text.startswith(_SQLITE):
        return text
    plain = text.removeprefix(_SQLITE)
    if not plain or Path(plain).is_dir():
        raise InputError(
            f"the registry {text!r} is not a file; give the path of an SQLite file such as "
            "runs/registry.db, or a URI"
        )
    return f"{_SQLITE}{Path(plain).absolute()}"


def open_store(uri: str | Path) -> MlflowClient:
    """A client of the store at ``uri``; an SQLite file and its directory are made when absent.

    Making a new SQLite store takes about 3 s (MLflow runs its whole migration history), opening
    one well under a second, importing MLflow 1-2 s.

    Raises:
        InputError: the store cannot be opened.
    """
    resolved = store_uri(uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if resolved.startswith(_SQLITE):
        Path(resolved.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # After the import, which sets levels of its own; migrations would fill the screen.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = mlflow.MlflowClient(tracking_uri=resolved, registry_uri=resolved)
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the registry {str(uri)!r} cannot be opened ({reason}); give another path, or move "
            "the file aside to start a new one"
        ) from error
    return client


def experiment_id(client: MlflowClient, uri: str | Path) -> str:
    """The id of the experiment that holds the versions' metrics, made when absent."""
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    resolved = store_uri(uri)
    location = None
    if resolved.startswith(_SQLITE):
        # MLflow's own default is relative to whatever directory a process happens to be in.
        location = (Path(resolved.removeprefix(_SQLITE)).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(_EXPERIMENT, artifact_location=location))


def source_commit() -> str:
    """The git commit of this source tree, or an empty string when it is not a checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = found.stdout.splitlines()
    # Another repository around an installed package says nothing about this code.
    ours = found.returncode == 0 and len(lines) == 2 and Path(lines[0]) == package.parent
    return lines[1] if ours else ""
