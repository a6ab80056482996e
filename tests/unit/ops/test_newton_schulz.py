"""Newton–Schulz: bands of singular values, the polar factor, and the numbers at the edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distforge.errors import InputError
from distforge.ops import COEFFICIENTS, coefficient_schedule, newton_schulz

SHAPES = [(1, 1), (5, 5), (5, 123), (123, 5), (2, 3, 17, 9), (4, 32, 48)]


def with_singular_values(m: int, n: int, values: np.ndarray, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    u, _ = np.linalg.qr(generator.standard_normal((m, m)))
    v, _ = np.linalg.qr(generator.standard_normal((n, n)))
    k = min(m, n)
    return torch.from_numpy(u[:, :k] @ np.diag(values) @ v[:, :k].T)


def scalar_iteration(values: np.ndarray, coefficients: str, steps: int) -> np.ndarray:
    """The same polynomial on the singular values alone, which the matrices must reproduce."""
    s = values / np.linalg.norm(values)
    for a, b, c in coefficient_schedule(coefficients, steps):
        s = a * s + b * s**3 + c * s**5
    return s


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("m,n", [(24, 24), (24, 40), (40, 24)])
def test_singular_values_follow_the_polynomial_and_the_vectors_stay(coefficients, m, n):
    values = np.geomspace(3.0, 0.05, 24)
    x = with_singular_values(m, n, values)
    expected = with_singular_values(m, n, scalar_iteration(values, coefficients, 5))
    got = newton_schulz(x, coefficients, 5)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# quintic: Jordan 2024 gives about [0.68, 1.13] for the limit band, up to 1.21 on the way there.
# polar_express after five steps has its published error of 0.13 on [1e-3, 1].
@pytest.mark.parametrize(
    "coefficients,low,high", [("quintic", 0.65, 1.21), ("polar_express", 0.86, 1.13)]
)
@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (3, 48, 96)])
def test_singular_values_lie_in_the_band(coefficients, low, high, shape):
    values = torch.linalg.svdvals(newton_schulz(randn(*shape), coefficients))
    assert values.min() > low
    assert values.max() < high


@pytest.mark.parametrize("shape", [(32, 32), (5, 123), (123, 5), (2, 3, 17, 9)])
def test_polar_express_reaches_the_polar_factor(shape):
    x = randn(*shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(newton_schulz(x, "polar_express", 10), u @ vh, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_lower_precision_stays_near_float64(dtype, tolerance, coefficients):
    # Well conditioned, so that the tolerance measures rounding and not the amplification of the
    # smallest singular value (3.4 to 8 times in each early step).
    x = with_singular_values(24, 48, np.linspace(1.0, 0.5, 24))
    got = newton_schulz(x.to(dtype), coefficients)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), newton_schulz(x, coefficients), rtol=0, atol=tolerance)


def test_batched_is_each_matrix_by_itself():
    x = randn(2, 3, 17, 9)
    together = newton_schulz(x)
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(together[index], newton_schulz(x[index]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_input_is_not_modified_and_shape_and_layout_are_kept(shape):
    x = randn(*shape)
    before = x.clone()
    y = newton_schulz(x)
    assert torch.equal(x, before)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e20, 1e37])
def test_scale_does_not_matter(scale):
    # Exactly representable mantissas, so that a denormal float32 loses nothing.
    x = torch.randint(-8, 9, (12, 20), generator=torch.Generator().manual_seed(1)).float()
    scaled = (x.double() * scale).float()
    torch.testing.assert_close(newton_schulz(scaled), newton_schulz(x), rtol=0, atol=2e-3)


def test_powers_of_two_change_no_bit():
    x = randn(12, 20)
    assert torch.equal(newton_schulz(x * 2.0**-60), newton_schulz(x))
    assert torch.equal(newton_schulz(x * 2.0**60), newton_schulz(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 3, 3)])
def test_zeros_give_zeros(dtype, shape):
    y = newton_schulz(torch.zeros(shape, dtype=dtype), "polar_express", 8)
    assert torch.equal(y, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_batches_and_matrices(shape):
    assert newton_schulz(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 0.0])
def test_one_bad_matrix_leaves_its_neighbours_alone(poison):
    x = randn(4, 8, 12)
    clean = newton_schulz(x)
    x[2] = poison if poison == 0.0 else x[2]
    x[2, 1, 3] = poison
    y = newton_schulz(x)
    for index in (0, 1, 3):
        assert torch.equal(y[index], clean[index])
    if poison == 0.0:
        assert y[2].abs().max() == 0
    else:
        assert y[2].isnan().any()


def test_polar_express_repeats_its_last_step():
    schedule = coefficient_schedule("polar_express", 11)
    assert len(schedule) == 11
    assert schedule[7:] == ((1.875, -1.25, 0.375),) * 4
    assert coefficient_schedule("quintic", 3) == ((3.4445, -4.7750, 2.0315),) * 3


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((torch.ones(4),), r"x has shape \(4,\)"),
        ((torch.ones(4, 4, dtype=torch.int64),), r"x is torch\.int64"),
        (([[1.0]],), r"x is a list"),
        ((torch.ones(4, 4), "quartic"), r"'quartic': expected one of polar_express, quintic"),
        ((torch.ones(4, 4), "quintic", 0), r"steps is 0"),
        ((torch.ones(4, 4), "quintic", 2.5), r"steps is 2\.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        newton_schulz(*arguments)
