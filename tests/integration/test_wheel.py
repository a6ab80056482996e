"""A wheel, built where the compiler fails, installed into an environment and used far from here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "configs", "distforge")
pytestmark = pytest.mark.nightly

BROKEN_COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "a compiler" && exit 0
echo "no such thing as C++20" && exit 1
"""

OPTIMIZER_STEP = """
import torch
from distforge.optim import MuonGrokfast, MuonGrokfastConfig

model = torch.nn.Linear(8, 8)
before = model.weight.detach().clone()
optimizer = MuonGrokfast(model.named_parameters(), MuonGrokfastConfig.baking())
model(torch.ones(2, 8)).square().sum().backward()
optimizer.step()
print("moved", not torch.equal(before, model.weight))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def build(source: Path, **environment: str) -> tuple[int, str]:
    """pip's exit status and all that it says."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v")
    done = run(*pip, "--wheel-dir", source / "dist", source, cwd=source, **environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        options = {"ignore": skip} if copy is shutil.copytree else {}
        copy(ROOT / name, folder / name, **options)
    (folder / "c++").write_text(BROKEN_COMPILER)
    (folder / "c++").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    status, said = build(source, CXX=str(source / "c++"))
    assert status == 0, said
    assert said.count("distforge: native part: none (it did not compile; ") == 1
    (log,) = (source / "build").glob("native-*/build.log")
    assert str(log) in said
    assert "no such thing as C++20" in log.read_text()
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A folder with nothing but ``env``, where the wheel is installed; its dependencies are those
    of this interpreter, without what this interpreter itself has of distforge."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = folder / "env"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps")
    done = run(*pip, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder


def test_it_holds_every_configuration(wheel):
    packed = {Path(name).name for name in ZipFile(wheel).namelist() if "/configs/" in name}
    assert packed == {path.name for path in (ROOT / "configs").iterdir()}
    assert "quick.toml" in packed


def test_the_command_finds_the_configurations_that_came_with_it(elsewhere):
    distforge = elsewhere / "env" / "bin" / "distforge"
    assert "usage: distforge" in run(distforge, "--help", cwd=elsewhere).stdout
    done = run(distforge, "run", "--config", "quick", "--dry-run", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert 'name = "quick"' in done.stdout


def test_its_optimizer_steps_and_says_why_it_is_not_native(elsewhere):
    done = run(elsewhere / "env" / "bin" / "python", "-c", OPTIMIZER_STEP, cwd=elsewhere)
    assert done.stdout == "moved True\n", done.stderr
    reason = "distforge was installed without its native part: it did not compile; "
    assert done.stderr.count(f"every operator runs as the torch reference: {reason}") == 1
    assert done.stderr.count("runs as the torch reference") == 1


def test_a_native_part_that_was_asked_for_is_built_or_an_error(wheel, source):
    status, said = build(source, CXX=str(source / "c++"), DISTFORGE_BUILD_NATIVE="1")
    assert status != 0
    assert "DISTFORGE_BUILD_NATIVE=1, but it did not compile" in said
