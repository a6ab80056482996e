"""What the server of `forking_server.py` imports before it forks: all that a command needs.

A report's pictures and the answers that are written are the dearest parts of a short run, and are
not what is tested: pictures are files of a few bytes, answers have four tokens.
"""

# ruff: noqa: I001 - what is imported reads the environment that is set first

import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import tests.distributed.preload

import contextlib
import gc
import importlib
import io
import tempfile
from pathlib import Path

from distforge.baking.supervised import trainer
from distforge.registry.store import source_commit
from distforge.reports import canvas
from distforge.theater import exam
from tests.faults import short_publish, short_runs

for module in (
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "distforge.commands.registry",
):
    importlib.import_module(module)

canvas.draw_overview = lambda *_: b"a picture"
canvas.draw_apart = lambda panels: {title: f"<svg><title>{title}</title></svg>" for title in panels}
trainer.generation_room = lambda *_: 4
exam.SPARE_TOKENS = 0

__all__ = ["tests", "warm"]

_CASES = (short_runs.STEP1, short_runs.STEP2, short_publish.PUBLISH, short_publish.REPLAY)


def warm() -> None:
    """Run everything once: what is only done the first time, every child has behind it."""
    source_commit()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for number, case in enumerate(_CASES):
            case.prepare(runs := Path(folder, str(number)))
            assert case.run(runs) in case.statuses
            case.product(runs)
    gc.freeze()  # what all children have in common is not looked through again
