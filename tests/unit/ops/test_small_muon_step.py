"""The whole step of small matrices in one call: against float64, by its parts, and its refusals."""

from __future__ import annotations

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import native, reference

SIZES = [(24, 24), (3, 7, 9), (9, 60), (256, 24), (1, 1), (0, 4, 4)]
SHAPES = {"rows": [24, 7, 9, 256, 1, 4], "columns": [24, 9, 60, 24, 1, 4]}
OTHERS = {
    **SHAPES,
    "scales": [1.0, 0.5, 2.0, 1.5, 1.0, 1.0],
    "coefficients": "quintic",
    "steps": 5,
    "lr": 0.02,
    "weight_decay": 0.1,
    "alpha": 0.98,
    "lamb": 2.0,
    "beta": 0.95,
    "nesterov": True,
}
IMPLEMENTATIONS = [
    pytest.param(ops.small_muon_step_, id="dispatched"),
    pytest.param(reference.small_muon_step_, id="reference"),
]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def buffers() -> list[list[torch.Tensor]]:
    """Weights, gradients, averages and momenta."""
    return [[randn(*size, seed=seed) for size in SIZES] for seed in range(4)]


def test_this_machine_runs_the_native_operator():
    assert native.why_not_native("small_muon_step_", [torch.ones(3)]) == ""


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("coefficients", ops.COEFFICIENTS)
@pytest.mark.parametrize(("lamb", "nesterov"), [(2.0, True), (0.0, True), (0.0, False)])
def test_matches_float64(step, coefficients, lamb, nesterov):
    found = buffers()
    exact = [[tensor.double() for tensor in tensors] for tensors in found]
    choice = OTHERS | {"coefficients": coefficients, "lamb": lamb, "nesterov": nesterov}
    for tensors in (found, exact):
        if lamb == 0:
            tensors[2] = []
    assert step(*found, **choice) is None
    reference.small_muon_step_(*exact, **choice)
    for tensors, wanted in zip(found, exact, strict=True):
        for tensor, other in zip(tensors, wanted, strict=True):
            torch.testing.assert_close(tensor.double(), other, rtol=1e-5, atol=2e-6)


def test_the_iteration_rounds_the_coefficients_and_the_result_alone():
    weight, momentum, grad = torch.zeros(24, 40), torch.zeros(24, 40), randn(24, 40)
    plain = {"lr": 1.0, "weight_decay": 0.0, "alpha": 0.0, "lamb": 0.0, "beta": 0.0}
    choice = OTHERS | plain | {"rows": [24], "columns": [40], "scales": [1.0]}
    ops.small_muon_step_([weight], [grad], None, [momentum], **choice)
    wanted = -reference.newton_schulz(grad.double())
    torch.testing.assert_close(weight.double(), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_no_scale_of_the_gradient_matters(size):
    weights = [torch.zeros(5, 7), torch.zeros(5, 7)]
    grads, momenta = [randn(5, 7), randn(5, 7) * size], [torch.zeros(5, 7), torch.zeros(5, 7)]
    choice = OTHERS | {"rows": [5, 5], "columns": [7, 7], "scales": [1.0, 1.0], "lamb": 0.0}
    ops.small_muon_step_(weights, grads, None, momenta, **choice)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_nan_stays_in_its_matrix_and_zeros_move_nothing():
    weights, momenta = [torch.ones(3, 4, 4)], [torch.zeros(3, 4, 4)]
    grad = randn(3, 4, 4)
    grad[1, 2, 3] = float("nan")
    grad[2] = 0
    choice = OTHERS | {"rows": [4], "columns": [4], "scales": [1.0], "weight_decay": 0.0}
    ops.small_muon_step_(weights, [grad], None, momenta, **choice | {"lamb": 0.0})
    assert weights[0].isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert not weights[0][0].isnan().any()
    assert torch.equal(weights[0][2], torch.ones(4, 4))


def test_no_bit_depends_on_the_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            w, g, m = ([randn(9, 12, seed=100 * k + i) for i in range(90)] for k in range(3))
            choice = OTHERS | {"rows": [9] * 90, "columns": [12] * 90, "scales": [1.0] * 90}
            ops.small_muon_step_(w, g, None, m, **choice | {"lamb": 0.0})
            results.append(torch.stack(w))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_no_tensor_at_all_is_fine():
    none = {"rows": [], "columns": [], "scales": []}
    for step in (ops.small_muon_step_, reference.small_muon_step_):
        step([], [], None, [], **OTHERS | none)


def test_opcheck():
    w, g, h, m = ([randn(3, 4, seed=i)] for i in range(4))
    schedule = reference.flat_schedule("quintic", 5)
    numbers = (0.02, 0.1, 0.98, 2.0, 0.95, True)
    operator = torch.ops.distforge.small_muon_step_.default
    torch.library.opcheck(operator, (w, g, h, m, [3], [4], [1.0], schedule, *numbers))


BAD_ARGUMENTS = {
    "shape": (lambda w, g, h, m: ([w], [g], [h], [m]), {"rows": [7]}, r"not made of 7 x 5"),
    "zero": (lambda w, g, h, m: ([w], [g], [h], [m]), {"rows": [0]}, r"not made of 0 x 5"),
    "lengths": (lambda w, g, h, m: ([w], [g], [h], [m]), {"rows": [6, 6]}, r"rows has 2 tensors"),
    "strides": (lambda w, g, h, m: ([w.mT], [g.mT], [h], [m]), {}, r"is not contiguous"),
    "dtype": (lambda w, g, h, m: ([w], [g.double()], [h], [m]), {}, r"has dtype"),
    "aliased": (lambda w, g, h, m: ([w], [g], [h], [h]), {}, r"share memory"),
    "lr": (lambda w, g, h, m: ([w], [g], [h], [m]), {"lr": -1.0}, r"lr is -1\.0"),
    "beta": (lambda w, g, h, m: ([w], [g], [h], [m]), {"beta": 2.0}, r"beta is 2\.0"),
}


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_nothing_is_modified(step, case):
    choose, changes, message = BAD_ARGUMENTS[case]
    tensors = [randn(6, 5, seed=seed) for seed in range(4)]
    before = [tensor.clone() for tensor in tensors]
    one = {"rows": [6], "columns": [5], "scales": [1.0]}
    with pytest.raises(InputError, match=message):
        step(*choose(*tensors), **OTHERS | one | changes)
    for tensor, original in zip(tensors, before, strict=True):
        assert torch.equal(tensor, original)


def test_a_matrix_that_is_not_small_is_refused_by_the_native_operator():
    w, g, m = ([randn(25, 25, seed=i)] for i in range(3))
    schedule, numbers = reference.flat_schedule("quintic", 5), (0.02, 0.1, 0.98, 0.0, 0.95, True)
    with pytest.raises(RuntimeError, match="not made of small matrices"):
        torch.ops.distforge.small_muon_step_(w, g, [], m, [25], [25], [1.0], schedule, *numbers)
