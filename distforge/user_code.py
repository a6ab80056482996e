"""Python files of a user's own, which a setting names as ``file.py:function``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def run_file(path: Path) -> ModuleType:
    """The module that running the file at ``path``, which ends in ``.py``, makes.

    It is entered in ``sys.modules`` while and after it runs, as an imported one would be: its
    dataclasses and its pickles look there for it. The name is its own, so that a file called
    ``random.py`` hides nothing.

    Raises whatever the file raises, and FileNotFoundError where there is none.
    """
    place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{place}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
