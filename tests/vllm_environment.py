"""The interpreter that has vLLM, for tests on the real one: skipped, loudly, where it is not."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.rollouts import RolloutConfig
from distforge.rollouts.engines.interpreter import require_interpreter

ROOT = Path(__file__).parents[1]
PYTHON_VARIABLE = "DISTFORGE_VLLM_PYTHON"


@functools.cache
def vllm_python() -> str:
    """Of `make vllm`, or the one that a variable names."""
    python = os.environ.get(PYTHON_VARIABLE) or str(ROOT / ".venv-vllm" / "bin" / "python")
    try:
        require_interpreter(RolloutConfig(engine="vllm", num_actors=1, python=python))
    except InputError as error:
        pytest.skip(f"NOT TESTED against a real vLLM: {error}, or name one in {PYTHON_VARIABLE}")
    return python
