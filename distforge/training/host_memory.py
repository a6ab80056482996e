"""What a process on a CPU does with the memory that its tensors give back.

A step of training frees and wants again hundreds of megabytes. glibc returns large blocks to the
system at once, and the next step pays for each of their pages anew. Measured on two cores: 120
steps of the reinforcement in `benchmarks/bench_s5.py` took 27.1 s and 22.5 s with what is freed
kept. By glibc's environment variables of the same meaning, 60 steps of step 1 with their evaluation
took 33 s and 30 s, with 3% more memory at the peak.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt(3): its names and numbers.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, for this whole process.

    Returns:
        Whether it will: False where the C library has no such setting (musl, macOS), where
        everything works as before.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # No block by mmap (which is unmapped when freed), and none trimmed off the end of the heap.
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def return_freed_memory() -> bool:
    """Give the system what malloc has kept so far, where a phase ends: the blocks of the next one
    are of other sizes, and would be laid beside it.

    Returns:
        Whether anything was given back.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0)))
    except (AttributeError, OSError):  # another C library
        return False
