"""A new SQLite registry in milliseconds: MLflow's migrations run once, then their result is copied.

Processes that tests start are not prepared so: they run the migrations as a user's do.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from distforge.registry import store
from tests.shared import build_once

_genuine = store._migrate


def migrate(directory: Path) -> None:
    import mlflow  # sets levels of its own

    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri = f"sqlite:///{directory / 'registry.db'}"
    _genuine(directory / "registry.db")
    mlflow.MlflowClient(uri, uri).search_registered_models(max_results=1)


def use_template(patch: pytest.MonkeyPatch) -> None:
    """New stores of this process begin as copies of the migrated one."""

    def copy(file: Path) -> None:
        shutil.copy(build_once("registry", migrate) / "registry.db", file)

    patch.setattr(store, "_migrate", copy)
