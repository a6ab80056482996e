"""A new SQLite registry in milliseconds: MLflow's migrations run once, then their result is copied.

Processes that tests start are not prepared so: they run the migrations as a user's do.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distforge.registry.store import Store, store_uri
from tests.shared import build_once

SQLITE = "sqlite:///"


def migrate(directory: Path) -> None:
    import mlflow

    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri = f"{SQLITE}{directory / 'registry.db'}"
    mlflow.MlflowClient(uri, uri).search_registered_models(max_results=1)


def use_template(patch: pytest.MonkeyPatch) -> None:
    """New stores of this process begin as copies of the migrated one."""
    genuine = Store.__init__

    def prepared(store: Store, connect: Callable[[], Any], uri: str | Path) -> None:
        resolved = store_uri(uri)
        path = Path(resolved.removeprefix(SQLITE))
        if resolved.startswith(SQLITE) and not path.exists():
            shutil.copy(build_once("registry", migrate) / "registry.db", path)
        genuine(store, connect, uri)

    patch.setattr(Store, "__init__", prepared)
