"""A kernel that computes something else than the reference is found out, and not used."""

from __future__ import annotations

import pytest
import torch

from distforge import ops
from distforge.ops import device_check, native, reference, self_check

CPU = torch.device("cpu")
DTYPES = {
    "newton_schulz": [torch.float32, torch.bfloat16],
    "grokfast_momentum_into_": [torch.float32, torch.bfloat16],
    "orthogonal_update_": [torch.float32, torch.bfloat16],
    "small_muon_step_": [torch.float32],
}
CASES = [(operator, dtype) for operator, dtypes in DTYPES.items() for dtype in dtypes]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(device_check, "_faults", {})


def sabotage(monkeypatch, spoil) -> None:
    original = self_check._native

    def spoiled(operator):
        def run(*arguments):
            result = original(operator)(*arguments)
            spoil(result, *arguments)
            return result

        return run

    monkeypatch.setattr(self_check, "_native", spoiled)


def last_row(result: torch.Tensor | None, *arguments) -> None:
    """Spoils one row of 600 in what Newton–Schulz returns, one of 21, or one element of 70,001."""
    written = result
    if written is None:
        lists = [argument for argument in arguments if isinstance(argument, list)]
        written = lists[2 if len(lists) == 4 else 0][1]  # of the momenta, or of the weights
    if written.dim() == 3 and written.shape[1] == 600:
        written[0, -1] = 0
    elif written.shape == (3, 7, 9):
        written[0, -1] += 0.1
    elif written.shape == (70_001,):
        written[-1] += 0.1


@pytest.mark.parametrize(("operator", "dtype"), CASES)
def test_the_kernels_of_this_processor_pass(operator, dtype):
    assert device_check.fault(operator, CPU, dtype) == ""


@pytest.mark.parametrize(("operator", "dtype"), CASES)
def test_one_wrong_row_or_element_is_found(operator, dtype, monkeypatch):
    sabotage(monkeypatch, last_row)
    problem = device_check.fault(operator, CPU, dtype)
    assert "fails its check on cpu" in problem
    where = {"newton_schulz": "600", "small_muon_step_": "3, 7, 9"}
    assert where.get(operator, "70001") in problem


def test_a_kernel_that_does_not_launch_is_found_and_asked_once(monkeypatch):
    calls = []

    def broken(operator):
        calls.append(operator)
        raise RuntimeError("newton_schulz did not launch: no kernel image\nmore")

    monkeypatch.setattr(self_check, "_native", broken)
    for _ in range(3):
        problem = device_check.fault("newton_schulz", CPU, torch.float32)
    assert problem.endswith("(newton_schulz did not launch: no kernel image)")
    assert calls == ["newton_schulz"]


def test_the_reference_runs_in_the_place_of_a_kernel_that_fails(monkeypatch, caplog):
    monkeypatch.setattr(native, "CHECKED_DEVICES", ["cpu"])
    native.tell_once.cache_clear()
    sabotage(monkeypatch, last_row)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    result = ops.newton_schulz(x)
    assert torch.equal(result, reference.newton_schulz(x))
    assert "newton_schulz runs as the torch reference: the native kernel fails" in caplog.text
    native.tell_once.cache_clear()


def test_a_default_device_elsewhere_changes_nothing():
    with torch.device("meta"):
        problems = [self_check.examine(operator, CPU, dtype) for operator, dtype in CASES]
    assert problems == [""] * len(CASES)


def test_every_operator_can_be_checked_by_name(monkeypatch):
    found = ops.check_kernels(CPU)
    names = [f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in CASES]
    assert found == dict.fromkeys(names, "")
    monkeypatch.setattr(device_check, "_faults", {})
    sabotage(monkeypatch, last_row)
    assert "fails its check" in ops.check_kernels(CPU)["newton_schulz float32"]
