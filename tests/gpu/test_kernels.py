"""The CUDA kernels on a GPU: against float64, captured in a graph, without a synchronisation."""

from __future__ import annotations

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import device_check, native, reference, self_check

pytestmark = pytest.mark.gpu

SCALARS = {"alpha": 0.98, "lamb": 2.0, "beta": 0.95, "nesterov": True}
UPDATE = {"lr": 0.02, "weight_decay": 0.1, "scale": 1.5}
HALVES = [torch.bfloat16, torch.float16]

# Tiles are 128 wide and rows are padded to 32 elements: below, at and beside the edges.
SHAPES = [
    (1, 1),
    (5, 123),
    (123, 5),
    (128, 128),
    (129, 257),
    (300, 290),
    (96, 400),
    (700, 130),
    (2, 3, 17, 9),
    (1024, 1024),
    (512, 2048),
    # Above 512 Hopper multiplies 16-bit elements by wgmma.
    (600, 520),
    (2, 530, 1100),
    (1001, 777),
]

# As tests/unit/ops/test_newton_schulz_native.py: not a worse class of error than the eager
# iteration's, above a floor at which both are noise.
LARGEST_RATIO = {torch.float32: 2.0, torch.bfloat16: 1.0, torch.float16: 1.5}
FLOOR = {torch.float32: 4e-6, torch.bfloat16: 2.5e-2, torch.float16: 4e-3}


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def require_native(dtype: torch.dtype) -> None:
    problem = native.why_not_native("newton_schulz", [torch.ones(2, 2, dtype=dtype, device="cuda")])
    if "need compute capability" in problem:
        pytest.skip(problem)
    assert problem == ""


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    return ((result.double() - oracle).norm() / oracle.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("coefficients", ops.COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_error_is_no_worse_than_the_eager_iterations(shape, dtype, coefficients):
    require_native(dtype)
    x = randn(*shape, dtype=dtype)
    oracle = reference.newton_schulz(x.double(), coefficients)
    ours = relative_error(ops.newton_schulz(x, coefficients), oracle)
    eager = relative_error(reference.newton_schulz(x, coefficients), oracle)
    assert ours <= max(LARGEST_RATIO[dtype] * eager, FLOOR[dtype]), (ours, eager)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", [(6, 24, 24), (6, 170, 24), (5, 600, 600)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 0.0])
def test_a_bad_matrix_changes_no_bit_of_its_neighbours(shape, poison, dtype):
    require_native(dtype)
    x = randn(*shape, dtype=dtype)
    clean = ops.newton_schulz(x)
    x[2] = 0.0 if poison == 0.0 else x[2]
    x[2, 1, 3] = poison
    y = ops.newton_schulz(x)
    others = [index for index in range(len(x)) if index != 2]
    assert torch.equal(y[others], clean[others])
    assert y[2].abs().max() == 0 if poison == 0.0 else y[2].isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_and_huge_matrices_come_out_as_ordinary_ones(scale, dtype):
    require_native(dtype)
    x = (randn(64, 200).double() * scale).to(dtype)
    oracle = reference.newton_schulz(x.double())
    assert relative_error(ops.newton_schulz(x), oracle) < 10 * FLOOR[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", [(16, 128, 128), (3, 700, 700)])
def test_runs_are_deterministic_and_a_batch_is_each_matrix_by_itself(shape, dtype):
    require_native(dtype)
    x = randn(*shape, dtype=dtype)
    expected = ops.newton_schulz(x)
    for _ in range(3):
        assert torch.equal(ops.newton_schulz(x), expected)
    assert torch.equal(torch.stack([ops.newton_schulz(matrix) for matrix in x]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_the_step_of_a_list_matches_the_reference(dtype, offset):
    sizes = [1, 0, 7, 4096, 16384, 16385, 70_001] * 15
    flat = [randn(sum(sizes) + offset, seed=seed)[offset:] for seed in range(3)]
    g, h, m = (list(t.split(sizes)) for t in flat)
    wanted = [[t.double() for t in items] for items in (g, h, m)]
    u = [torch.empty(size, dtype=dtype, device="cuda") for size in sizes]
    ops.grokfast_momentum_into_(g, h, m, u, **SCALARS)
    for index in range(len(sizes)):
        expected = reference.grokfast_momentum_(*(items[index] for items in wanted), **SCALARS)
        rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        torch.testing.assert_close(u[index].double(), expected, rtol=rounding, atol=2e-6)
        for mine, other in ((h, wanted[1]), (m, wanted[2])):
            torch.testing.assert_close(mine[index].double(), other[index], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_weight_update_matches_float64(dtype):
    sizes = [1, 7, 4096, 16385, 70_001]
    weights = [randn(size, seed=i) for i, size in enumerate(sizes)]
    updates = [randn(size, dtype=dtype, seed=10 + i) for i, size in enumerate(sizes)]
    decay, rate = 1 - UPDATE["lr"] * UPDATE["weight_decay"], UPDATE["lr"] * UPDATE["scale"]
    wanted = [decay * w.double() - rate * o.double() for w, o in zip(weights, updates, strict=True)]
    ops.orthogonal_update_(weights, updates, **UPDATE)
    for index, weight in enumerate(weights):
        torch.testing.assert_close(weight.double(), wanted[index], rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", [(8, 128, 96), (2, 1100, 1100)])
def test_a_whole_step_is_captured_in_a_graph(shape, dtype):
    require_native(dtype)
    g, h, m, w = (randn(*shape, seed=seed) for seed in range(4))
    u = torch.empty_like(g, dtype=dtype)

    def step() -> None:
        ops.grokfast_momentum_into_([g], [h], [m], [u], **SCALARS)
        ops.orthogonal_update_([w], [ops.newton_schulz(u)], **UPDATE)

    start = [t.clone() for t in (h, m, w)]
    step()
    expected = [t.clone() for t in (h, m, w)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for tensor, value in zip((h, m, w), start, strict=True):
        tensor.copy_(value)
    graph.replay()
    for tensor, value in zip((h, m, w), expected, strict=True):
        assert torch.equal(tensor, value)


@pytest.mark.parametrize("operator", self_check.GPU_OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_check_before_first_use_passes(operator, dtype):
    require_native(dtype)
    assert device_check.fault(operator, torch.device("cuda", 0), dtype) == ""


def test_no_operator_waits_for_the_device():
    x = randn(4, 200, 200)
    w = torch.zeros_like(x)
    ops.orthogonal_update_([w], [ops.newton_schulz(x)], **UPDATE)  # the kernels' check waits for it
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.orthogonal_update_([w], [ops.newton_schulz(x)], **UPDATE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert w.isfinite().all()


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(InputError, match=r"updates\[0\] has device cpu"):
        ops.orthogonal_update_([randn(3)], [torch.ones(3)], **UPDATE)
    with pytest.raises(InputError, match=r"momenta\[0\] has device cpu"):
        ops.grokfast_momentum_into_([randn(3)], [randn(3)], [torch.ones(3)], [randn(3)], **SCALARS)


def test_the_current_stream_is_used():
    x = randn(4, 300, 300)
    expected = ops.newton_schulz(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = x * 0 + 1
        # On another stream this would read the tensor before it is filled.
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        result = ops.newton_schulz(late)
    stream.synchronize()
    assert torch.equal(result, expected)
