"""Another process finds out whether a kernel may be used; here it does so on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from distforge.ops import device_check, kernel_record, self_check

CPU = torch.device("cpu")
# A device that is not the CPU, as far as who examines goes.
GPU = torch.device("cuda", 0)
NAMES = ["grokfast_momentum_into_ float32", "newton_schulz float32", "orthogonal_update_ bfloat16"]

# The child's part with one operator that does to its process what a kernel does to a GPU's.
CHILD = """
import sys, os, signal, time, torch
from distforge.ops import device_check, native, self_check
native.backend()
def spoiled(operator):
    if operator == "newton_schulz":
        {deed}
    return getattr(torch.ops.distforge, operator)
self_check._native = spoiled
sys.exit(device_check.check_here(torch.device(sys.argv[1]), sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def own_record(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(device_check, "_faults", {})
    kernel_record.identity.cache_clear()


@pytest.fixture
def child(monkeypatch) -> Callable[[str], None]:
    """Runs the child with ``deed`` in the place of Newton–Schulz's kernel."""

    def run_with(deed: str) -> None:
        script = CHILD.format(deed=deed)
        monkeypatch.setattr(
            device_check,
            "_command",
            lambda device, names: [sys.executable, "-c", script, str(device), *names],
        )

    return run_with


def test_what_passes_in_another_process():
    assert device_check.examine_in_child(CPU, NAMES) == dict.fromkeys(NAMES, "")


def test_a_process_that_dies_names_the_kernel_and_the_others_are_checked(child):
    child("os.kill(os.getpid(), signal.SIGSEGV)")
    found = device_check.examine_in_child(CPU, NAMES)
    assert found == {
        NAMES[0]: "",
        NAMES[1]: "the native kernel's check on cpu ended by signal 11",
        NAMES[2]: "",
    }


def test_a_process_that_says_why_it_ends_is_quoted(child):
    child("sys.exit('an illegal memory access was encountered')")
    assert device_check.examine_in_child(CPU, NAMES[1:2]) == {
        NAMES[1]: "the native kernel's check on cpu ended with status 1: "
        "an illegal memory access was encountered"
    }


def test_a_kernel_that_never_ends_is_given_up(child, monkeypatch):
    monkeypatch.setattr(device_check, "_SECONDS", 15.0)
    child("signal.pause()")
    found = device_check.examine_in_child(CPU, NAMES[1:2])
    assert found == {NAMES[1]: "the native kernel's check on cpu took longer than 15 s"}


def test_a_device_that_another_process_cannot_use_says_nothing_of_the_kernels():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    assert device_check.examine_in_child(torch.device("cuda", 7), NAMES) is None


@pytest.fixture
def counted(monkeypatch) -> list[list[str]]:
    """A GPU whose child finds Newton–Schulz wrong; what was asked of children, in order."""
    asked: list[list[str]] = []

    def child(device: torch.device, names: list[str]) -> dict[str, str]:
        asked.append(names)
        return {name: "wrong" if name.startswith("newton") else "" for name in names}

    monkeypatch.setattr(device_check, "examine_in_child", child)
    monkeypatch.setattr(kernel_record, "identity", lambda device: f"a GPU, {device}")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return asked


def test_what_passed_is_not_asked_again_by_the_next_process(counted, monkeypatch):
    names = [device_check.name_of(operator, torch.float32) for operator in self_check.GPU_OPERATORS]
    for _ in range(2):
        assert device_check.fault("orthogonal_update_", GPU, torch.float32) == ""
        assert device_check.fault("newton_schulz", GPU, torch.float32) == "wrong"
        # The next process.
        monkeypatch.setattr(device_check, "_faults", {})
    # What is wrong is asked for again each time: the driver may have been replaced.
    assert counted == [names, names, names]
    assert kernel_record.read(GPU) == dict.fromkeys(
        ["grokfast_momentum_into_ float32", "orthogonal_update_ float32"], ""
    )


def test_the_process_itself_examines_where_no_other_may_have_the_device(monkeypatch, counted):
    monkeypatch.setattr(device_check, "examine_in_child", lambda device, names: None)
    monkeypatch.setattr(self_check, "examine", lambda *key: "found here")
    assert device_check.fault("newton_schulz", GPU, torch.float32) == "found here"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("torch.compiler.is_compiling", "a function is compiled"),
        ("torch.cuda.is_current_stream_capturing", "a CUDA graph is captured"),
    ],
)
def test_nothing_unchecked_is_used_while_nothing_may_wait(where, said, counted, monkeypatch):
    with monkeypatch.context() as during:
        during.setattr(where, lambda: True)
        problem = device_check.fault("orthogonal_update_", GPU, torch.float32)
        assert problem == f"it has not been checked on cuda:0 yet, and cannot be while {said}"
        assert counted == []
    assert device_check.fault("orthogonal_update_", GPU, torch.float32) == ""
