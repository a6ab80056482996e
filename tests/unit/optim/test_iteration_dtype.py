"""Which dtype "auto" is, by what a card's hardware multiplies."""

import pytest
import torch

from distforge.optim.iteration import iteration_dtype, travel_dtype

CARDS = [
    ("NVIDIA H100 80GB HBM3", (9, 0), True, torch.bfloat16),
    ("NVIDIA GeForce RTX 3060", (8, 6), True, torch.bfloat16),
    ("NVIDIA GeForce RTX 2080 Ti", (7, 5), False, torch.float16),
    ("Tesla V100-SXM2-16GB", (7, 0), False, torch.float16),
    ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), False, torch.float32),
    ("NVIDIA GeForce MX450", (7, 5), False, torch.float32),
    ("NVIDIA GeForce GTX 1080", (6, 1), False, torch.float32),
]


@pytest.mark.parametrize(("name", "capability", "bf16", "expected"), CARDS)
def test_auto_on_a_gpu(monkeypatch, name, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    device = torch.device("cuda", 0)
    assert iteration_dtype("auto", device) is expected
    assert iteration_dtype("bfloat16", device) is torch.bfloat16
    # float16 needs the norm of the whole matrix before it is cast.
    kept = torch.float32 if expected is torch.float16 else expected
    assert travel_dtype("auto", device) is kept


def test_auto_on_a_cpu():
    assert iteration_dtype("auto", torch.device("cpu")) is torch.float32
