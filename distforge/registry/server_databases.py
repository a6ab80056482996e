"""The SQLite files of a server, each made whole or not at all, before the server opens them.

MLflow migrates a new file in many steps, and cannot go on with one in which it was killed. It is
the server's own interpreter that makes them, since its MLflow may be another version.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from distforge.errors import InputError
from distforge.registry.store import alone, new_database

Kind = Literal["models", "users"]

_SECONDS = 120
# Killed with its parent (PR_SET_PDEATHSIG), whose lock is free then: the next start makes the same
# file.
_MAKE = """
import ctypes, os, signal, sys
kind, file, parent = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    sys.exit("nobody waits for it any more")
from sqlalchemy import NullPool, create_engine
engine = create_engine("sqlite:///" + file, poolclass=NullPool)
if kind == "users":
    from mlflow.server.auth.db.utils import migrate
    migrate(engine, "head")
else:
    from mlflow.store.db.utils import _initialize_tables
    _initialize_tables(engine)
"""


def make_databases(python: str, files: Mapping[Kind, Path]) -> None:
    """Make those that are not there yet.

    Args:
        python: the interpreter that runs the server.

    Raises:
        InputError: MLflow cannot make one; nothing is left of it.
    """
    for kind, file in files.items():
        with alone(file):
            if not file.exists():
                _make(python, kind, file)


def _make(python: str, kind: Kind, file: Path) -> None:
    with new_database(file) as partial:
        command = [python, "-c", _MAKE, kind, str(partial), str(os.getpid())]
        try:
            made = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{file} was not made in {_SECONDS} s; see that its disk works, and start again"
            ) from None
        if made.returncode:
            reason = (made.stderr.strip().splitlines() or ["no reason"])[-1]
            raise InputError(f"{file} cannot be made by the MLflow of {python}: {reason}")
