"""What distforge.ops says about itself, with the native part and without."""

from __future__ import annotations

import subprocess
import sys

import torch

from distforge import ops
from distforge.ops import native


def test_build_info_tells_the_compiler_and_the_instruction_set():
    info = ops.build_info()
    assert info["native"] == "yes"
    assert info["torch"] == torch.__version__
    assert "-O3" in info["compiler_flags"]
    assert info["compiler"]
    # torch detects the processor on its own; the two must not disagree on AVX2.
    ours, torchs = info["cpu_capability"], torch.backends.cpu.get_cpu_capability()
    assert (ours == "default") == (torchs == "DEFAULT"), (ours, torchs)


def test_backend_names_the_implementation():
    found = ops.backend()
    assert found.name == "native"
    assert set(native.OPERATORS) <= set(ops.__all__)
    assert ops.build_info()["cpu_capability"] in found.reason


def test_unfit_tensors_are_told_with_the_reason():
    name = "orthogonal_update_"
    assert native.why_not_native(name, [torch.ones(3)]) == ""
    assert native.why_not_native(name, [torch.ones(3, dtype=torch.bfloat16)], role="update") == ""
    assert "float64" in native.why_not_native(
        name, [torch.ones(3), torch.ones(3, dtype=torch.float64)]
    )
    half = [torch.ones(3, dtype=torch.float16)]
    assert "as update" in native.why_not_native(name, half, role="update")
    assert "device meta" in native.why_not_native(name, [torch.ones(3, device="meta")])


BLOCKED = """
import logging, sys
sys.modules["distforge._C"] = None
logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stdout)
import torch, distforge.ops as ops
g, h, m = torch.ones(4), torch.ones(4), torch.zeros(4)
for _ in range(3):
    u = ops.grokfast_momentum_(g, h, m, alpha=0.5, lamb=1.0, beta=0.5, nesterov=False)
print("u", u.tolist())
print("backend", ops.backend().name)
print("info", ops.build_info()["native"])
"""


def test_without_the_extension_the_reference_runs_and_says_so_once():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("distforge.ops:")]
    assert len(told) == 1
    assert "every operator runs as the torch reference" in told[0]
    assert "distforge._C" in told[0]
    # Constant gradient 1 and EMA 1: m goes to 2 as 2 * (1 - 2**-k).
    assert "u [1.75, 1.75, 1.75, 1.75]" in lines
    assert "backend reference" in lines
    assert any(line.startswith("info no: ") for line in lines)
