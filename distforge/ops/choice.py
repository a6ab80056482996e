"""DISTFORGE_KERNELS: whether a kernel runs that could.

``auto`` (the default): on a GPU the faster of kernel and reference by class of shapes, which is
measured once and remembered by `kernel_record`; on a CPU the kernel. ``native``: the kernel
wherever it can run. ``reference``: never. Only Newton–Schulz is measured, whose peer is the
vendor's matrix product; the other kernels read and write once what the reference reads and writes
three times.

Only a process alone measures. Ranks that each measured for themselves could choose differently, and
replicas would drift apart by rounding: they take what is remembered, and where nothing is, the
kernel.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from distforge.errors import InputError
from distforge.ops import kernel_record

log = logging.getLogger("distforge.ops")

VARIABLE = "DISTFORGE_KERNELS"
_WISHES = ("auto", "native", "reference")

# Where it is measured. On CPUs the benchmarks have: the kernels are the faster ones.
MEASURED_DEVICES = ["cuda"]
# The reference has to be this much faster: what hardly matters shall not depend on noise.
_CLEARLY = 0.9
_ROUNDS = 5

Run = Callable[[], object]

_chosen: dict[tuple[torch.device, str], str] = {}


@functools.cache
def wish() -> str:
    """auto, native or reference, as the environment has it when first asked.

    Raises:
        InputError: another value.
    """
    value = os.environ.get(VARIABLE, "auto")
    if value not in _WISHES:
        raise InputError(f"{VARIABLE}={value!r}: expected {', '.join(_WISHES)}")
    return value


def is_measured(device: torch.device) -> bool:
    """Whether `slower` has to be asked at all."""
    return device.type in MEASURED_DEVICES and wish() == "auto"


def slower(question: str, device: torch.device, kernel: Run, reference: Run) -> str:
    """Why the reference runs although the kernel could: it is faster; empty where it is not.

    Args:
        question: operator, dtype and class of shapes.
        kernel, reference: do the same work on ``device``, as often as they are called.
    """
    key = device, question
    if key not in _chosen:
        known = kernel_record.read(device)
        if question not in known:
            if not _may_measure(device):
                return ""
            known = kernel_record.remember(device, {question: _measured(device, kernel, reference)})
        _chosen[key] = known[question]
        if known[question]:
            log.info("%s runs as the torch reference: %s", question, known[question])
    return _chosen[key]


def class_of(x: Tensor) -> str:
    """Of a batch of matrices: its size and theirs, each to the next power of two."""
    *batch, rows, columns = x.shape
    sizes = (math.prod(batch), rows, columns)
    return "x".join(str(1 << max(0, size - 1).bit_length()) for size in sizes)


def _may_measure(device: torch.device) -> bool:
    if torch.compiler.is_compiling() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return False
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _measured(device: torch.device, kernel: Run, reference: Run) -> str:
    """The sentence of `slower`, by the medians of a few rounds in turn after one of warming up."""
    times: dict[Run, list[float]] = {kernel: [], reference: []}
    for _ in range(_ROUNDS + 1):
        for run, seconds in times.items():
            seconds.append(_seconds(device, run))
    ours, theirs = (statistics.median(seconds[1:]) for seconds in times.values())
    if theirs >= _CLEARLY * ours:
        return ""
    return f"it takes {theirs * 1e3:.3g} ms here, the native kernel {ours * 1e3:.3g} ms"


def _seconds(device: torch.device, run: Run) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
