"""Python files of a user's own, which a setting names as ``file.py:function``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def run_file(path: Path) -> ModuleType:
    """The module that running the file at ``path``, which ends in ``.py``, makes.

    Raises whatever the file raises, and FileNotFoundError where there is none.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
