"""Does a native operator compute on this device what the reference does?

The kernels are compiled for GPUs that nobody may have run them on. One that is wrong there would
show in a training run as a model that learns badly, if at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from distforge.errors import first_line
from distforge.ops import reference

# One for each way through the kernels: matrices small and large, iterated directly and by their
# Gram matrix, wide and tall, and none a whole number of tiles.
_MATRICES = [(3, 40, 24), (2, 96, 160), (1, 600, 530), (1, 520, 1100)]
# How many times the reference's own rounding error, in the same dtype, is allowed, and what may be
# added. A single wrong row of 600 is an error of 0.041; the reference's is 0.023 in bfloat16 (the
# kernels' half of that), 0.003 in float16 and 2e-6 in float32.
_LARGEST_RATIO = {torch.float32: 3.0, torch.float16: 3.0, torch.bfloat16: 1.5}
_FLOOR = 1e-5

_VECTORS = [(1,), (70_001,), (64, 33)]
_FILTER: dict[str, Any] = {"alpha": 0.98, "lamb": 2.0, "beta": 0.95, "nesterov": True}
_FACTORS: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "scale": 1.5}

Native = Callable[..., Any]
Pairs = Iterator[tuple[Tensor, Tensor]]  # what a kernel wrote, and the reference


def examine(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with an operator's results on a device; empty when they are right.

    Args:
        dtype: of Newton–Schulz's products, of the update otherwise.
    """
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            problem = _CHECKS[operator](_native(operator), device, dtype)
    except RuntimeError as error:
        problem = first_line(error)
    return problem and f"the native kernel fails its check on {device} ({problem})"


def _native(operator: str) -> Native:
    native: Native = getattr(torch.ops.distforge, operator)
    return native


def _newton_schulz(native: Native, device: torch.device, dtype: torch.dtype) -> str:
    schedule = reference.flat_schedule("quintic", 5)
    for shape in _MATRICES:
        x = _random(shape, 0, device).to(dtype)
        exact = reference.newton_schulz(x.double())
        own = _error(reference.newton_schulz(x), exact)
        found = _error(native(x, schedule), exact)
        if not found <= _LARGEST_RATIO[dtype] * own + _FLOOR:
            return f"{shape} in {dtype} is off by {found:.1e}, the reference by {own:.1e}"
    return ""


def _elementwise(pairs: Pairs) -> str:
    for found, expected in pairs:
        # Rounding to nearest may go either way where a sum is rounded differently.
        rounding = 2 * torch.finfo(found.dtype).eps
        if not torch.allclose(found.float(), expected.float(), rtol=rounding, atol=1e-5):
            return f"{tuple(found.shape)} in {found.dtype} differs from the reference"
    return ""


def _momentum(native: Native, device: torch.device, dtype: torch.dtype) -> Pairs:
    g, h, m = ([_random(shape, seed, device) for shape in _VECTORS] for seed in range(3))
    u = [torch.empty_like(tensor, dtype=dtype) for tensor in g]
    wanted = [[tensor.clone() for tensor in tensors] for tensors in (h, m, u)]
    reference.grokfast_momentum_into_(g, *wanted, **_FILTER)
    native(g, h, m, u, *_FILTER.values())
    for found, expected in zip((h, m, u), wanted, strict=True):
        yield from zip(found, expected, strict=True)


def _update(native: Native, device: torch.device, dtype: torch.dtype) -> Pairs:
    w, o = ([_random(shape, seed, device) for shape in _VECTORS] for seed in range(2))
    o = [tensor.to(dtype) for tensor in o]
    wanted = [tensor.clone() for tensor in w]
    reference.orthogonal_update_(wanted, o, **_FACTORS)
    native(w, o, *_FACTORS.values())
    yield from zip(w, wanted, strict=True)


def _small_step(native: Native, device: torch.device, dtype: torch.dtype) -> Pairs:
    sizes = [(24, 24), (3, 7, 9), (9, 60), (1, 1)]
    shapes: dict[str, Any] = {"rows": [24, 7, 9, 1], "columns": [24, 9, 60, 1]}
    scales = [1.0, 1.5, 0.5, 2.0]
    w, g, h, m = ([_random(size, seed, device) for size in sizes] for seed in range(4))
    wanted = [[tensor.clone() for tensor in tensors] for tensors in (w, h, m)]
    rates: dict[str, Any] = {"lr": _FACTORS["lr"], "weight_decay": _FACTORS["weight_decay"]}
    others = rates | _FILTER | {"coefficients": "quintic", "steps": 5}
    reference.small_muon_step_(
        wanted[0], g, wanted[1], wanted[2], **shapes, scales=scales, **others
    )
    schedule = reference.flat_schedule("quintic", 5)
    native(w, g, h, m, *shapes.values(), scales, schedule, *rates.values(), *_FILTER.values())
    for found, expected in zip((w, h, m), wanted, strict=True):
        yield from zip(found, expected, strict=True)


def _random(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Not where `torch.set_default_device` may want it, which has no such generator.
    return torch.randn(shape, generator=generator, device="cpu").to(device)


def _error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


_CHECKS: dict[str, Callable[[Native, torch.device, torch.dtype], str]] = {
    "newton_schulz": _newton_schulz,
    "grokfast_momentum_into_": lambda *example: _elementwise(_momentum(*example)),
    "orthogonal_update_": lambda *example: _elementwise(_update(*example)),
    "small_muon_step_": lambda *example: _elementwise(_small_step(*example)),
}

OPERATORS = tuple(_CHECKS)
# What has a kernel for GPUs too.
GPU_OPERATORS = tuple(name for name in OPERATORS if name != "small_muon_step_")
