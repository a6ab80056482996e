"""Whether two formulas are equal, by math-verify in a process of its own.

What a model writes may take sympy for ever, inside arithmetic that no signal interrupts. So it is
asked in another process, which is ended at its deadline.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from distforge.extras import EXTRAS

DEADLINE = 5.0
"""Seconds for two formulas."""
_START = 60.0
_WORKER = Path(__file__).with_name("symbolic_worker.py")

_process: subprocess.Popen[str] | None = None


def available() -> bool:
    """Whether math-verify is installed."""
    return all(find_spec(name) is not None for name in EXTRAS["math"])


def why_not() -> str:
    """Why two formulas were not compared, as the end of a sentence."""
    if available():
        return f"were not compared within {DEADLINE:.0f} s"
    return "were not compared: pip install 'distforge[math]'"


def equal(given: str, truth: str, deadline: float = DEADLINE) -> bool | None:
    """Whether two formulas, in TeX or plain, are equal; None where that is not known."""
    if not available():
        return None
    process = _worker()
    answer = None
    if process is not None:
        answer = _ask(process, json.dumps([given, truth]), deadline)
    if answer not in ("true", "false"):
        close()
        return None
    return answer == "true"


def close() -> None:
    """End the process, if there is one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


def _worker() -> subprocess.Popen[str] | None:
    global _process
    if _process is None or _process.poll() is not None:
        close()
        _process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        atexit.register(close)
        if _ask(_process, "", _START) != "ready":
            close()
    return _process


def _ask(process: subprocess.Popen[str], line: str, deadline: float) -> str | None:
    """A line's answer; None where none comes in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except OSError:
        return None
    if not select.select([process.stdout], [], [], deadline)[0]:
        return None
    return process.stdout.readline().strip()
