"""May a kernel be used on this device? Asked once, before its first use there.

On a GPU another process finds out: a kernel that touches memory that is not its own, or never ends,
ruins what its process has on the GPU. What passes is remembered by `kernel_record`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from distforge.errors import first_line
from distforge.ops import kernel_record, self_check

# Starting torch on a GPU takes most of it.
_SECONDS = 180.0

# The child's exit status where it cannot use the device at all, which says nothing of the kernels:
# a GPU may be set to admit one process.
NO_DEVICE = 3

_faults: dict[tuple[str, torch.device, torch.dtype], str] = {}

_UNCHECKED = "it has not been checked on {} yet, and cannot be while {}"


def fault(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with an operator's results on a device; empty when they are right.

    Args:
        dtype: of Newton–Schulz's products, of the update otherwise.

    Nothing may wait while a CUDA graph is captured or a function compiled: a kernel that was not
    checked before is not used then.
    """
    key = (operator, device, dtype)
    if key not in _faults:
        if torch.compiler.is_compiling():
            return _UNCHECKED.format(device, "a function is compiled")
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return _UNCHECKED.format(device, "a CUDA graph is captured")
        _faults[key] = _found_out(*key)
    return _faults[key]


def name_of(operator: str, dtype: torch.dtype) -> str:
    """As a check is written: ``newton_schulz bfloat16``."""
    return f"{operator} {str(dtype).removeprefix('torch.')}"


def _found_out(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return self_check.examine(operator, device, dtype)
    name = name_of(operator, dtype)
    if name in kernel_record.read(device):
        return ""
    # The others of this dtype will be asked for next, and a process is what takes the time.
    found = examine_in_child(device, [name_of(other, dtype) for other in self_check.GPU_OPERATORS])
    if found is None:
        return self_check.examine(operator, device, dtype)
    passed = [other for other, problem in found.items() if not problem]
    kernel_record.remember(device, dict.fromkeys(passed, ""))
    return found[name]


def examine_in_child(device: torch.device, names: list[str]) -> Mapping[str, str] | None:
    """What another process finds wrong with each of ``names``; None where it has no such device.

    Where the process itself comes to an end, that is what is wrong with the one that it was at.
    """
    found: dict[str, str] = {}
    while len(found) < len(names):
        left = [name for name in names if name not in found]
        status, output, complaint = _run_child(device, left)
        if status == NO_DEVICE:
            return None
        for line in output.splitlines():
            found.update(json.loads(line))
        if len(found) < len(names):
            at = next(name for name in left if name not in found)
            said = f": {complaint}" if complaint else ""
            found[at] = f"the native kernel's check on {device} {_ending(status)}{said}"
    return found


def _run_child(device: torch.device, names: list[str]) -> tuple[int | None, str, str]:
    """Exit status (None after the deadline), output, and the last line of complaint."""
    package = str(Path(__file__).parents[2])
    paths = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        _command(device, names),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        output, complaint = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        return None, output, ""
    last = complaint.strip().splitlines()[-1:]
    return process.returncode, output, "".join(last)


def _command(device: torch.device, names: list[str]) -> list[str]:
    return [sys.executable, "-m", "distforge.ops", str(device), *names]


def _ending(status: int | None) -> str:
    if status is None:
        return f"took longer than {_SECONDS:.0f} s"
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def check_here(device: torch.device, names: list[str]) -> int:
    """The child's part: print what is wrong, one JSON object a line; its exit status."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        print(first_line(error), file=sys.stderr)
        return NO_DEVICE
    for name in names:
        operator, dtype = name.split()
        problem = self_check.examine(operator, device, getattr(torch, dtype))
        print(json.dumps({name: problem}), flush=True)
    return 0
