"""What the server of `forking_server.py` imports before it forks: all that a command needs.

A report's pictures are the dearest part of a short run, and pictures are not what is tested: they
are files like others, of a few bytes.
"""

# ruff: noqa: I001 - what is imported reads the environment that is set first

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import tests.distributed.preload

import contextlib
import importlib
import io
import tempfile
from pathlib import Path

from distforge.registry.store import source_commit
from distforge.reports import canvas
from tests.faults import short_runs

for module in (
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "distforge.commands.registry",
):
    importlib.import_module(module)

canvas._png = lambda _figure: b"a picture"
canvas._svg = lambda _figure, title: f"<svg><title>{title}</title></svg>"

__all__ = ["tests", "warm"]


def warm() -> None:
    """Run everything once: what is only done the first time, every child has behind it."""
    source_commit()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for number, run in enumerate((short_runs.step1, short_runs.step2)):
            assert run(Path(folder, str(number))) in (0, 3)
