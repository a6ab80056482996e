"""The scratch of a step is bounded by the bucket, whatever the size of the model."""

import pytest
import torch
from torch import nn

from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from tests.peak_memory import peak_bytes

MEGABYTE = 2**20


@pytest.mark.parametrize("count", [40, 160])
@pytest.mark.parametrize("shape", [(256, 256), (512, 128)])
def test_peak_stays_under_the_bucket_on_a_model_ten_times_its_size(tmp_path, shape, count):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(count)]
    config = MuonGrokfastConfig(bucket_cap_mb=4.0, ns_dtype="float32")
    optimizer = MuonGrokfast([(f"w{i}", p) for i, p in enumerate(params)], config)
    for param in params:
        param.grad = torch.randn(shape, generator=generator)
    optimizer.step()  # the state exists from here on
    assert count < 100 or sum(p.nbytes for p in params) >= 10 * 4 * MEGABYTE
    assert peak_bytes(optimizer.step, tmp_path / "trace.json") <= 4 * MEGABYTE


def test_a_matrix_larger_than_the_bucket_goes_through_alone(tmp_path):
    params = [nn.Parameter(torch.randn(256, 256)) for _ in range(8)]
    optimizer = MuonGrokfast(
        [(f"w{i}", p) for i, p in enumerate(params)], MuonGrokfastConfig(bucket_cap_mb=0.01)
    )
    for param in params:
        param.grad = torch.randn(256, 256)
    optimizer.step()
    # Three of them are under way at a time.
    assert peak_bytes(optimizer.step, tmp_path / "trace.json") <= 3 * 8 * 256 * 256 * 4


def test_adamw_of_16_bit_tables_stays_under_the_bucket(tmp_path):
    params = [nn.Parameter(torch.randn(256, 256, dtype=torch.bfloat16)) for _ in range(40)]
    named = [(f"embed.{i}", p) for i, p in enumerate(params)]
    optimizer = MuonGrokfast(named, MuonGrokfastConfig(bucket_cap_mb=4.0))
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    # Float32 copies of all weights and gradients would be 20 MB; rounding has a few of one tensor.
    assert peak_bytes(optimizer.step, tmp_path / "trace.json") <= 6 * MEGABYTE
