"""MuonGrokfast on a GPU takes the same steps as on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distforge.optim import MuonGrokfast, MuonGrokfastConfig

pytestmark = pytest.mark.gpu

STEPS = 5
# Matrices of three shapes, one of them several times, so that batches differ in size, and vectors.
SIZES = [(64, 48), (64, 48), (48, 64), (30, 30), (64, 48), (7,), (64,)]


def parameters(device: str) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator).to(device)) for size in SIZES]


def trained(params: list[nn.Parameter], config: MuonGrokfastConfig) -> list[torch.Tensor]:
    optimizer = MuonGrokfast([(f"layer.{i}", p) for i, p in enumerate(params)], config)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.device)
        optimizer.step()
    return [param.detach().cpu() for param in params]


@pytest.mark.parametrize(
    ("ns_dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2), ("float16", 1e-2)]
)
@pytest.mark.parametrize("bucket_cap_mb", [0.2, 256.0])
def test_the_weights_are_those_of_a_cpu(ns_dtype, tolerance, bucket_cap_mb):
    if ns_dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not multiply bfloat16")
    config = MuonGrokfastConfig(
        muon_lr=0.02, adamw_lr=0.01, ns_dtype="float32", bucket_cap_mb=bucket_cap_mb
    )
    start = parameters("cpu")
    expected = trained(copy.deepcopy(start), config)
    found = trained(parameters("cuda"), config.replace(ns_dtype=ns_dtype))
    for before, wanted, value in zip(start, expected, found, strict=True):
        assert (value - wanted).norm() <= tolerance * (wanted - before.detach()).norm()


def test_a_gradient_that_is_not_finite_changes_nothing():
    params = parameters("cuda")
    optimizer = MuonGrokfast(
        [(f"layer.{i}", p) for i, p in enumerate(params)], MuonGrokfastConfig()
    )
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    params[-1].grad[3] = torch.inf
    with pytest.raises(FloatingPointError, match=r"layer\.6"):
        optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
