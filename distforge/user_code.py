"""Python files of a user's own, which a setting names as ``file.py:function``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def run_file(path: Path) -> ModuleType:
    """The module that running the file at ``path``, which ends in ``.py``, makes.

    Raises whatever the file raises, and FileNotFoundError where there is none.
    """
    # A file "math.py" must not take the place of another module.
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As an import does: dataclasses, for one, look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
