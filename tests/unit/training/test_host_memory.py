"""Memory that is freed stays with the process: the next block of its size costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distforge.training import host_memory

# Allocates, touches and frees 64 MiB again and again, in a process of its own: the setting is for
# good. Prints the page faults.
_PROGRAM = """
import resource, sys
import torch
from distforge.training.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
# Aligned blocks do not always fit the hole of their like: a few are needed until one does.
for _ in range(25):
    torch.ones(16 * 2**20)
before = faults()
for _ in range(10):
    torch.ones(16 * 2**20)
print(faults() - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, returned = _faults("keep"), _faults("return")
    # 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB where the system makes those unasked.
    assert returned > 10 * 32 * 0.9
    assert kept < returned / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.sys, "platform", "darwin")
    assert not host_memory.keep_freed_memory()


# Frees 256 MiB that lie below what stays, as the end of a phase does. Prints MiB before and after.
_HOLES = """
import sys
import torch
from distforge.training.host_memory import keep_freed_memory, return_freed_memory

def resident():
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

if not keep_freed_memory():
    sys.exit(77)
blocks = [torch.ones(2**20) for _ in range(128)]
stays = blocks[1::2]
del blocks
before = resident()
return_freed_memory()
print(before - resident())
"""


def test_what_a_phase_has_freed_is_given_back_where_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 200  # every other one of 128 blocks of 4 MiB
