"""The fused filter-and-momentum step: against a float64 oracle, in both implementations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import reference

SCALARS = {"alpha": 0.98, "lamb": 2.0, "beta": 0.95}

# One step is three multiply-adds on numbers of size about 1; with or without fused multiply-add
# each is right to half a unit in the last place of float32 (6e-8).
FLOAT32_TOLERANCE = {"rtol": 2e-6, "atol": 1e-6}

IMPLEMENTATIONS = [
    pytest.param(ops.grokfast_momentum_, id="dispatched"),
    pytest.param(reference.grokfast_momentum_, id="reference"),
]


def oracle(grad, ema, momentum, *, alpha, lamb, beta, nesterov):
    """The update in numpy float64; ema None means no filter. Returns (u, h, m)."""
    g, m = np.asarray(grad, dtype=np.float64), np.asarray(momentum, dtype=np.float64)
    h = None if ema is None else alpha * np.asarray(ema, dtype=np.float64) + (1 - alpha) * g
    filtered = g if h is None else g + lamb * h
    m = beta * m + (1 - beta) * filtered
    u = (1 - beta) * filtered + beta * m if nesterov else m
    return u, h, m


def buffers(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def native_is_built():
    return ops.backend().name == "native"


def test_this_machine_runs_the_native_operator():
    # `make setup` always builds the CPU part: without this, every comparison below could be the
    # reference against itself.
    assert native_is_built(), ops.backend().reason


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 123), (3, 5, 17), (16, 64), (70_001,), (0,)])
def test_matches_float64_over_several_steps(step, nesterov, shape):
    _, ema, momentum = buffers(*shape)
    h, m = ema.double().numpy(), momentum.double().numpy()
    for seed in range(4):
        grad = buffers(*shape, seed=10 + seed)[0]
        before = grad.clone()
        update = step(grad, ema, momentum, **SCALARS, nesterov=nesterov)
        u, h, m = oracle(grad, h, m, **SCALARS, nesterov=nesterov)
        assert torch.equal(grad, before)
        for got, wanted in ((update, u), (ema, h), (momentum, m)):
            np.testing.assert_allclose(got.numpy(), wanted, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("ema", [None, torch.empty(0)], ids=["none", "empty"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_without_filter_it_is_plain_momentum(step, ema, nesterov):
    grad, _, momentum = buffers(5, 123)
    u, _, m = oracle(grad, None, momentum, alpha=0.98, lamb=0.0, beta=0.9, nesterov=nesterov)
    update = step(grad, ema, momentum, alpha=0.98, lamb=0.0, beta=0.9, nesterov=nesterov)
    np.testing.assert_allclose(update.numpy(), u, **FLOAT32_TOLERANCE)
    np.testing.assert_allclose(momentum.numpy(), m, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_a_given_ema_is_updated_even_at_lambda_zero(step):
    grad, ema, momentum = buffers(33)
    _, h, _ = oracle(grad, ema, momentum, alpha=0.9, lamb=0.0, beta=0.9, nesterov=True)
    step(grad, ema, momentum, alpha=0.9, lamb=0.0, beta=0.9, nesterov=True)
    np.testing.assert_allclose(ema.numpy(), h, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("lamb", [0.1, 0.2, 2.0])
def test_steady_state_gain_is_one_plus_lambda(step, lamb):
    # The inverted filter g + lamb * (g - h) would come out at 1.
    grad = torch.full((9,), 0.5)
    ema, momentum = torch.zeros(9), torch.zeros(9)
    for _ in range(300):
        update = step(grad, ema, momentum, alpha=0.9, lamb=lamb, beta=0.9, nesterov=True)
    torch.testing.assert_close(update, grad * (1 + lamb), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_and_stay_themselves(dtype):
    grad, ema, momentum = buffers(11, 3, dtype=dtype)
    u, h, m = oracle(grad.double(), ema.double(), momentum.double(), **SCALARS, nesterov=True)
    update = ops.grokfast_momentum_(grad, ema, momentum, **SCALARS, nesterov=True)
    # Four roundings of values up to about 8.
    tolerance = 32 * torch.finfo(dtype).eps
    for got, wanted in ((update, u), (ema, h), (momentum, m)):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.double().numpy(), wanted, rtol=0, atol=tolerance)


def test_nan_stays_where_it_is():
    grad, ema, momentum = buffers(101)
    grad[13] = float("nan")
    update = ops.grokfast_momentum_(grad, ema, momentum, **SCALARS, nesterov=True)
    for tensor in (update, ema, momentum):
        assert tensor.isnan().nonzero().flatten().tolist() == [13]


def test_unaligned_slices_of_a_flat_buffer_touch_nothing_else():
    flat = [torch.arange(64, dtype=torch.float32) for _ in range(3)]
    flat[0].neg_()
    grad, ema, momentum = (t[3:50] for t in flat)
    u, _, _ = oracle(grad, ema, momentum, **SCALARS, nesterov=True)
    update = ops.grokfast_momentum_(grad, ema, momentum, **SCALARS, nesterov=True)
    np.testing.assert_allclose(update.numpy(), u, rtol=2e-6)
    untouched = torch.arange(64, dtype=torch.float32)
    for tensor in flat[1:]:
        assert torch.equal(tensor[:3], untouched[:3])
        assert torch.equal(tensor[50:], untouched[50:])
        assert not torch.equal(tensor[3:50], untouched[3:50])


def test_runs_are_deterministic():
    results = []
    for _ in range(3):
        grad, ema, momentum = buffers(100_003)
        results.append(ops.grokfast_momentum_(grad, ema, momentum, **SCALARS, nesterov=True))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


BAD_ARGUMENTS = {
    "momentum dtype": (
        lambda g, h, m: (g, h, m.double()),
        {},
        r"momentum has dtype torch\.float64 where grad has torch\.float32",
    ),
    "grad integer": (lambda g, h, m: (g.int(), h.int(), m.int()), {}, r"grad is torch\.int32"),
    "ema shape": (lambda g, h, m: (g, h[:3], m), {}, r"ema has shape"),
    "momentum device": (lambda g, h, m: (g, h, m.to("meta")), {}, r"momentum has device meta"),
    "grad strides": (lambda g, h, m: (g.mT, h.mT.contiguous(), m.mT.contiguous()), {}, r"grad is"),
    "momentum strides": (
        lambda g, h, m: (g[:, :4].contiguous(), h[:, :4].contiguous(), m[:, :4]),
        {},
        r"momentum is not contiguous",
    ),
    "aliased": (lambda g, h, m: (g, m, m), {}, r"(ema|momentum) and (ema|momentum) share memory"),
    "overlapping": (
        lambda g, h, m: (g[:3], h[:3], g[2:5]),
        {},
        r"(grad|momentum) and (grad|momentum) share memory",
    ),
    "no ema": (lambda g, h, m: (g, None, m), {}, r"ema is None but lamb is 2\.0"),
    "empty ema": (lambda g, h, m: (g, h[:0], m), {}, r"ema is empty but lamb is 2\.0"),
    "momentum a list": (lambda g, h, m: (g, h, m.tolist()), {}, r"momentum is a list"),
    "alpha": (lambda g, h, m: (g, h, m), {"alpha": 1.5}, r"alpha is 1\.5"),
    "beta": (lambda g, h, m: (g, h, m), {"beta": float("nan")}, r"beta is nan"),
    "lamb": (lambda g, h, m: (g, h, m), {"lamb": -0.1}, r"lamb is -0\.1"),
}


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_nothing_is_modified(step, case):
    choose, scalars, message = BAD_ARGUMENTS[case]
    tensors = buffers(6, 5)
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(InputError, match=message):
        step(*choose(*tensors), **{**SCALARS, **scalars}, nesterov=True)
    for tensor, original in zip(tensors, before, strict=True):
        assert torch.equal(tensor, original)


CAPABILITY_SCRIPT = """
import torch, distforge.ops as ops
generator = torch.Generator().manual_seed(3)
g, h, m = (torch.randn(1003, generator=generator) for _ in range(3))
u = ops.grokfast_momentum_(g, h, m, alpha=0.98, lamb=2.0, beta=0.95, nesterov=True)
print(ops.build_info()["cpu_capability"])
torch.save([u, h, m], "out.pt")
"""


def test_the_portable_kernel_agrees_with_the_chosen_one(tmp_path: Path):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-c", CAPABILITY_SCRIPT],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "default"
    generator = torch.Generator().manual_seed(3)
    grad, ema, momentum = (torch.randn(1003, generator=generator) for _ in range(3))
    update = ops.grokfast_momentum_(grad, ema, momentum, **SCALARS, nesterov=True)
    portable = torch.load(tmp_path / "out.pt", weights_only=True)
    for got, wanted in zip((update, ema, momentum), portable, strict=True):
        torch.testing.assert_close(got, wanted, **FLOAT32_TOLERANCE)
