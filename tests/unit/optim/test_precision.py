"""Which dtype "auto" is, by what the hardware multiplies."""

import os
import subprocess
import sys

import pytest
import torch

from distforge.optim import precision
from distforge.optim.iteration import travel_dtype
from distforge.optim.peers import alone
from distforge.optim.precision import fastest_dtype
from distforge.training.engine_config import resolve_dtype

CPU = torch.device("cpu")
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
def test_on_a_gpu(monkeypatch, name, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    gpu = torch.device("cuda", 0)
    assert fastest_dtype(gpu) is expected
    # Training takes the same: float16 gives NaN on GTX 16 cards.
    assert resolve_dtype("auto", gpu) == str(expected).removeprefix("torch.")


@pytest.mark.parametrize(
    ("multiplies", "expected"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_on_a_cpu(monkeypatch, multiplies, expected):
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: multiplies)
    peers = alone(CPU)
    assert peers.iteration_dtype("auto") is expected
    assert peers.iteration_dtype("bfloat16") is torch.bfloat16
    assert peers.iteration_dtype("float16") is torch.float16
    assert peers.iteration_dtype("float32") is torch.float32


@pytest.mark.parametrize("ceiling", ["ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2"])
def test_on_a_cpu_whose_instructions_are_forbidden(ceiling: str) -> None:
    """Both are read once, so a process of its own asks."""
    name, _, value = ceiling.partition("=")
    said = "from distforge.optim.precision import cpu_multiplies_bfloat16 as it; print(it())"
    command = [sys.executable, "-c", said]
    environment = {**os.environ, name: value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_float16_travels_as_float32():
    # It needs the norm of the whole matrix before it is cast.
    assert travel_dtype(torch.float16) is torch.float32
    assert travel_dtype(torch.bfloat16) is torch.bfloat16
    assert travel_dtype(torch.float32) is torch.float32
