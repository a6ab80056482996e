"""DISTFORGE_KERNELS, and which of kernel and reference `auto` takes, with the CPU as a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import choice, kernel_record, native, reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "MEASURED_DEVICES", ["cpu"])
    for cached in (kernel_record.identity, choice.wish, native.tell_once):
        cached.cache_clear()
    yield
    choice.wish.cache_clear()


class Work:
    """Something that takes as long as it is told, and counts how often it was done."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self) -> None:
        self.calls += 1
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass


def test_the_faster_one_is_taken_measured_once_and_remembered(monkeypatch):
    slow, fast = Work(0.02), Work(0.002)
    said = choice.slower("a", CPU, kernel=slow, reference=fast)
    assert "ms here, the native kernel 2" in said
    assert choice.slower("b", CPU, kernel=fast, reference=slow) == ""
    calls = slow.calls, fast.calls
    monkeypatch.setattr(choice, "_chosen", {})  # the next process
    assert choice.slower("a", CPU, kernel=slow, reference=fast) == said
    assert (slow.calls, fast.calls) == calls


def test_a_reference_that_is_hardly_faster_is_not_taken():
    assert choice.slower("a", CPU, kernel=Work(0.020), reference=Work(0.0195)) == ""


@pytest.mark.parametrize("known", [False, True])
def test_ranks_measure_nothing_and_take_what_is_remembered(monkeypatch, known):
    if known:
        kernel_record.remember(CPU, {"a": "it takes 1 ms here"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    slow, fast = Work(0.02), Work(0.002)
    said = choice.slower("a", CPU, kernel=slow, reference=fast)
    assert said == ("it takes 1 ms here" if known else "")
    assert (slow.calls, fast.calls) == (0, 0)


def test_nothing_is_measured_while_a_function_is_compiled(monkeypatch):
    slow, fast = Work(0.02), Work(0.002)
    with monkeypatch.context() as during:
        during.setattr(torch.compiler, "is_compiling", lambda: True)
        assert choice.slower("a", CPU, kernel=slow, reference=fast) == ""
    assert choice.slower("a", CPU, kernel=slow, reference=fast) != ""


@pytest.mark.parametrize(
    ("shape", "named"),
    [((64, 64), "1x64x64"), ((3, 65, 1), "4x128x1"), ((2, 3, 100, 1000), "8x128x1024")],
)
def test_classes_of_shapes(shape, named):
    assert choice.class_of(torch.empty(shape)) == named


def test_newton_schulz_runs_as_what_was_found_to_be_faster(monkeypatch):
    x = torch.randn(2, 96, 160, generator=torch.Generator().manual_seed(0))
    expected = reference.newton_schulz(x)
    kernel = torch.ops.distforge.newton_schulz(x, reference.flat_schedule("quintic", 5))
    assert not torch.equal(kernel, expected)
    for seconds, result in ((-1.0, kernel), (1.0, expected)):
        monkeypatch.setattr(choice, "_chosen", {})
        kernel_record.path().unlink(missing_ok=True)
        times = iter([0.0, 0.0] + [5.0 + seconds, 5.0] * 5)
        monkeypatch.setattr(choice, "_seconds", lambda device, run, times=times: next(times))
        assert torch.equal(ops.newton_schulz(x), result)
        assert torch.equal(ops.newton_schulz(x), result)


def test_the_kill_switch(monkeypatch, caplog):
    monkeypatch.setenv("DISTFORGE_KERNELS", "reference")
    x = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.newton_schulz(x), reference.newton_schulz(x))
    assert "newton_schulz runs as the torch reference: DISTFORGE_KERNELS=reference" in caplog.text
    assert ops.backend() == ops.Backend("reference", "DISTFORGE_KERNELS=reference")


def test_native_measures_nothing(monkeypatch):
    monkeypatch.setenv("DISTFORGE_KERNELS", "native")
    assert not choice.is_measured(CPU)
    assert ops.backend().name == "native"


def test_a_switch_that_does_not_exist_names_those_that_do(monkeypatch):
    monkeypatch.setenv("DISTFORGE_KERNELS", "fast")
    with pytest.raises(InputError, match="DISTFORGE_KERNELS='fast': expected auto, native, ref"):
        ops.newton_schulz(torch.ones(2, 2))
