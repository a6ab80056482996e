"""The native Newton–Schulz: its error against float64, its bits, its refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import native, newton_schulz, reference

# Blocks are 96 wide, tiles 8 x 48 (AVX-512): below, at and beside their edges, tall and wide, on
# both sides of the ratio from which the Gram form runs.
SHAPES = [
    (1, 1),
    (5, 123),
    (123, 5),
    (48, 48),
    (96, 144),
    (97, 145),
    (193, 97),
    (200, 200),
    (64, 512),
    (600, 100),
    (2, 3, 17, 9),
]

# In bfloat16 the error is smaller (float32 sums and one rounding a product), in float32 it is as
# well, for sums are short. The products of the Gram form are other ones than the definition's, so
# there its error is not the same number; it may not be a worse class of error. The floor is a few
# units in the last place, below which both are noise.
LARGEST_GRAM_RATIO = {torch.float32: 1.5, torch.bfloat16: 1.0}
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spectrum(m: int, n: int, smallest: float, dtype=torch.float32) -> torch.Tensor:
    """Singular values from 1 down to ``smallest``, evenly in the exponent."""
    u, _, vh = torch.linalg.svd(randn(m, n).double(), full_matrices=False)
    values = torch.logspace(0, torch.log10(torch.tensor(smallest)).item(), min(m, n)).double()
    return ((u * values) @ vh).to(dtype)


def low_rank(m: int, n: int, dtype=torch.float32) -> torch.Tensor:
    return (randn(m, 6) @ randn(6, n, seed=1) + 1e-2 * randn(m, n, seed=2)).to(dtype)


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    return ((result.double() - oracle).norm() / oracle.norm()).item()


def assert_as_good_as_the_reference(x: torch.Tensor, coefficients: str, steps: int = 5) -> None:
    oracle = reference.newton_schulz(x.double(), coefficients, steps)
    ours = relative_error(newton_schulz(x, coefficients, steps), oracle)
    eager = relative_error(reference.newton_schulz(x, coefficients, steps), oracle)
    short, long = sorted(x.shape[-2:])
    ratio = LARGEST_GRAM_RATIO[x.dtype] if 2 * long >= 3 * short else 1.0
    assert ours <= max(ratio * eager, FLOOR[x.dtype]), (ours, eager)


def test_this_machine_runs_the_native_operator():
    for dtype in (torch.float32, torch.bfloat16):
        assert native.why_not_native("newton_schulz", [torch.ones(2, 2, dtype=dtype)]) == ""


@pytest.mark.parametrize("coefficients", ops.COEFFICIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_against_float64_is_no_worse_than_the_eager_iterations(shape, dtype, coefficients):
    assert_as_good_as_the_reference(randn(*shape, dtype=dtype), coefficients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 384), (384, 96), (128, 128), (256, 256), (1024, 256)])
@pytest.mark.parametrize("smallest", [1e-2, 1e-4])
def test_ill_conditioned_matrices_are_no_worse_either(shape, smallest, dtype):
    assert_as_good_as_the_reference(spectrum(*shape, smallest, dtype), "quintic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 384), (384, 96), (128, 128)])
def test_nearly_singular_matrices_are_no_worse_either(shape, dtype):
    assert_as_good_as_the_reference(low_rank(*shape, dtype=dtype), "quintic")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(40, 40), (40, 100)])
def test_any_number_of_steps(shape, steps):
    assert_as_good_as_the_reference(randn(*shape), "polar_express", steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("shape", [(20, 50), (50, 50)])
def test_tiny_and_huge_matrices_come_out_as_ordinary_ones(shape, scale, dtype):
    x = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    scaled = (x.double() * scale).to(dtype)
    wanted = reference.newton_schulz(scaled.double())
    assert relative_error(newton_schulz(scaled), wanted) < 10 * FLOOR[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 24, 24), (6, 70, 24), (5, 400, 400)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), 0.0])
def test_a_bad_matrix_changes_no_bit_of_its_neighbours(shape, poison, dtype):
    x = randn(*shape, dtype=dtype)
    clean = newton_schulz(x)
    x[2] = 0.0 if poison == 0.0 else x[2]
    x[2, 1, 3] = poison
    y = newton_schulz(x)
    others = [index for index in range(len(x)) if index != 2]
    assert torch.equal(y[others], clean[others])
    assert y[2].abs().max() == 0 if poison == 0.0 else y[2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 64, 48), (3, 400, 410), (1, 100, 700)])
def test_no_bit_depends_on_threads_batch_or_repetition(shape, dtype):
    x = randn(*shape, dtype=dtype)
    expected = newton_schulz(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(newton_schulz(x), expected)
    finally:
        torch.set_num_threads(threads)
    alone = torch.stack([newton_schulz(matrix) for matrix in x])
    assert torch.equal(alone, expected)


def test_strided_input_is_read_right_and_left_alone():
    x = randn(3, 40, 30)
    before = x.clone()
    assert torch.equal(newton_schulz(x.mT), newton_schulz(x.mT.contiguous()))
    assert torch.equal(newton_schulz(x[:, ::2]), newton_schulz(x[:, ::2].contiguous()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0), (0, 0)])
def test_empty_input_gives_empty_output(shape):
    assert newton_schulz(torch.empty(shape)).shape == shape


def test_what_it_cannot_take_runs_as_the_reference_and_is_told_once(caplog):
    native.tell_once.cache_clear()
    x = randn(8, 12, dtype=torch.float16)
    with caplog.at_level("WARNING", logger="distforge.ops"):
        assert torch.equal(newton_schulz(x), reference.newton_schulz(x))
        newton_schulz(x)
        leaf = randn(8, 12).requires_grad_()
        newton_schulz(leaf).sum().backward()
    assert leaf.grad is not None
    assert [record.getMessage() for record in caplog.records] == [
        "newton_schulz runs as the torch reference: the native kernel takes float32 or bfloat16 on "
        "cpu, not torch.float16",
        "newton_schulz runs as the torch reference: the native kernel has no derivative",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    flat = reference.flat_schedule("quintic", 5)
    x = randn(2, 6, 9, dtype=dtype)
    torch.library.opcheck(torch.ops.distforge.newton_schulz.default, (x, flat))


@pytest.mark.parametrize(
    "x,coefficients,message",
    [
        (torch.ones(4), [1.0, 1.0, 1.0], "two dimensions"),
        (torch.ones(4, 4, dtype=torch.float16), [1.0, 1.0, 1.0], "float32 or bfloat16"),
        (torch.ones(4, 6).mT, [1.0, 1.0, 1.0], "contiguous"),
        (torch.ones(4, 4), [1.0, 1.0], "three numbers"),
        (torch.ones(4, 4), [], "three numbers"),
    ],
)
def test_the_registered_operator_guards_itself(x, coefficients, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.distforge.newton_schulz(x, coefficients)


@pytest.mark.parametrize("arguments", [(torch.ones(3),), (torch.ones(3, 3), "nope")])
def test_bad_arguments_are_refused_before_the_native_operator(arguments):
    with pytest.raises(InputError):
        newton_schulz(*arguments)


CAPABILITY_SCRIPT = """
import sys, torch, distforge.ops as ops
generator = torch.Generator().manual_seed(3)
results = []
for shape in ((101, 103), (60, 200), (200, 60)):
    x = torch.randn(*shape, generator=generator)
    results += [ops.newton_schulz(x), ops.newton_schulz(x.bfloat16())]
print(ops.build_info()["cpu_products"])
torch.save(results, "out.pt")
"""


@pytest.mark.parametrize(
    "limit,products",
    [
        ("ATEN_CPU_CAPABILITY=default", "float32: portable; bfloat16: as float32"),
        ("ATEN_CPU_CAPABILITY=avx2", "float32: avx2; bfloat16: as float32"),
        ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16", "float32: avx512; bfloat16: avx512_bf16"),
    ],
)
def test_lesser_instruction_sets_give_the_same_numbers(tmp_path: Path, limit, products):
    if "avx2" in products and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    if "avx512" in products and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor does not multiply bfloat16")
    name, _, value = limit.partition("=")
    environment = {**os.environ, name: value}
    done = subprocess.run(
        [sys.executable, "-c", CAPABILITY_SCRIPT],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == products
    generator = torch.Generator().manual_seed(3)
    results = iter(torch.load(tmp_path / "out.pt", weights_only=True))
    for shape in ((101, 103), (60, 200), (200, 60)):
        x = torch.randn(*shape, generator=generator)
        for dtype in (torch.float32, torch.bfloat16):
            oracle = reference.newton_schulz(x.to(dtype).double())
            assert relative_error(next(results), oracle) < 2 * FLOOR[dtype]
