"""The kernels without torch, under the address and undefined-behaviour sanitizers.

The CPU ones as they are; the CUDA ones as their serial host twin (see tests/native/).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++20", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-Icsrc", "-xc++"),
    # Device code is unrolled by a pragma of nvcc's own.
    "-Wno-unknown-pragmas",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CPU_SOURCES = [
    "csrc/common/cpu_capability.cpp",
    "csrc/newton_schulz/iteration_cpu.cpp",
    *(f"csrc/newton_schulz/{p.name}" for p in (ROOT / "csrc/newton_schulz").glob("blocks_*.cpp")),
]


def build(folder: Path, name: str, sources: list[str]) -> Path:
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [COMPILER, *SANITIZERS, str(probe), "-o", str(folder / "probe")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{COMPILER} comes without the sanitizers' libraries")
    output = folder / name
    command = [COMPILER, *FLAGS, *SANITIZERS, f"tests/native/{name}.cpp", *sources, "-o", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return output


def assert_clean(program: Path, **environment: str) -> None:
    done = subprocess.run(
        [program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith("ok: 0 failed")


@pytest.fixture(scope="module")
def cpu_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized"), "kernels_test", CPU_SOURCES)


# One processor has all instruction sets at hand; the cap makes it choose each of them in turn.
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_cpu_kernels_are_clean_and_right_on_each_instruction_set(cpu_kernels, capability):
    assert_clean(cpu_kernels, ATEN_CPU_CAPABILITY=capability)


@pytest.mark.parametrize("twin", ["gemm_test", "wgmma_test"])
def test_cuda_kernels_are_clean_and_right_as_their_host_twin(tmp_path, twin):
    assert_clean(build(tmp_path, twin, []))
