"""The kernels without torch, under the address and undefined-behaviour sanitizers.

The CPU ones as they are; the CUDA ones as their serial host twin (see tests/native/).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.compiled import ROOT, compile_once

COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-Icsrc", "-xc++"),
    # Device code is unrolled by a pragma of nvcc's own.
    "-Wno-unknown-pragmas",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CPU_SOURCES = [
    "csrc/common/cpu_capability.cpp",
    "csrc/newton_schulz/iteration_cpu.cpp",
    *(f"csrc/newton_schulz/{p.name}" for p in (ROOT / "csrc/newton_schulz").glob("blocks_*.cpp")),
]


def build(folder: Path, name: str, sources: list[str], optimize: str) -> Path:
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [COMPILER, *SANITIZERS, str(probe), "-o", str(folder / "probe")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{COMPILER} comes without the sanitizers' libraries")
    command = [COMPILER, optimize, *FLAGS, *SANITIZERS, f"tests/native/{name}.cpp", *sources]
    return compile_once(command, name, seconds=280) / name


def assert_clean(program: Path, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith("ok: 0 failed")


# One processor has all instruction sets at hand; the cap makes it choose each of them in turn.
@pytest.mark.parametrize(
    "capability", ["default", pytest.param("avx2", marks=pytest.mark.nightly), "avx512"]
)
def test_cpu_kernels_are_clean_and_right_on_each_instruction_set(tmp_path, capability):
    program = build(tmp_path, "kernels_test", CPU_SOURCES, "-O1")
    assert_clean(program, ATEN_CPU_CAPABILITY=capability)


# Emulated instruction by instruction, which the compiler's optimizations pay for. By day the
# program runs matrices of fewer shapes.
@pytest.mark.parametrize("shapes", ["few", pytest.param("all", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "twin", ["gemm_test", pytest.param("wgmma_test", marks=pytest.mark.nightly)]
)
def test_cuda_kernels_are_clean_and_right_as_their_host_twin(tmp_path, twin, shapes):
    assert_clean(build(tmp_path, twin, [], "-O2"), shapes)
