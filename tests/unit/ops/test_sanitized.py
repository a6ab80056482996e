"""The CPU kernels under the address and undefined-behaviour sanitizers, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [
    "tests/native/kernels_test.cpp",
    "csrc/common/cpu_capability.cpp",
    "csrc/newton_schulz/iteration_cpu.cpp",
    *(f"csrc/newton_schulz/{p.name}" for p in (ROOT / "csrc/newton_schulz").glob("blocks_*.cpp")),
]
# One processor has all instruction sets at hand; the cap makes it choose each of them in turn.
CAPABILITIES = ["default", "avx2", "avx512"]


def compiles(flags: list[str], folder: Path) -> bool:
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [os.environ.get("CXX", "g++"), *flags, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    compiler = os.environ.get("CXX", "g++")
    assert shutil.which(compiler), "the extension was built, so there is a compiler"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if not compiles(sanitizers, folder):
        pytest.skip(f"{compiler} comes without the sanitizers' libraries")
    output = folder / "kernels_test"
    command = [compiler, *flags, *sanitizers, *SOURCES, "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_kernels_are_clean_and_right_on_each_instruction_set(driver, capability):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([driver], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith("ok: 0 failed")
