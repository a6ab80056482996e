"""What is costly to make is made once for all workers of a test session, and only read by them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# Set by conftest.py: the session's directory, the same for every worker.
VARIABLE = "DISTFORGE_TESTS_SHARED"


def build_once(name: str, build: Callable[[Path], object], root: Path | None = None) -> Path:
    """The directory ``name``, filled by ``build(directory)`` in whichever process asks first.

    The others wait for it. Whoever needs to write takes a copy. ``root`` is where it is kept
    instead of the session's directory.
    """
    root = root or Path(os.environ[VARIABLE])
    root.mkdir(parents=True, exist_ok=True)
    directory, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)  # of a process that failed in the middle
            directory.mkdir()
            build(directory)
            done.touch()
    return directory
