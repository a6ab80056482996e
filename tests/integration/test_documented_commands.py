"""Every block of README and docs that is not marked otherwise runs as it is written.

In a folder as a reader has it after `make run`, but with models of a few steps: what they answer
is wrong, so a command may also end with 3, its goal missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED, OK, main
from tests.documented import FILES, ROOT, Block, blocks
from tests.integration.pipeline_process import CONFIG
from tests.shared import build_once

BLOCKS = [block for file in FILES for block in blocks(file) if not block.why_not]
FEW = ["--existing=replace", "--telemetry.wandb-mode=disabled"]


def make_folder(root: Path) -> None:
    """``runs/quick`` and ``runs/quick_step2``, and the models and prompts that the texts name."""
    os.symlink(ROOT / "configs", root / "configs")
    (root / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    for name in ("prompt.txt", "p.txt", "a.txt", "b.txt"):
        (root / name).write_text(f"Answer as {name} would.", encoding="utf-8")
    before = Path.cwd()
    os.chdir(root)
    try:
        words = ["--config", "tiny.toml", *FEW]
        assert main(["bake", *words, "--name", "quick"]) == GOAL_MISSED
        more = ["--baked", "runs/quick", "--name", "quick_step2"]
        assert main(["think", *words, *more]) in (OK, GOAL_MISSED)
    finally:
        os.chdir(before)
    for name in ("M", "path/to/model"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(root / "runs" / "quick" / "model", root / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = build_once("documented", make_folder)
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    for name in ("M", "path/to/model"):
        (copy / name).unlink()
        os.symlink(copy / "runs" / "quick" / "model", copy / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "distforge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m distforge "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return copy


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_documented_block_runs_as_written(block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    if block.language == "python":
        commands = [[sys.executable, "-c", block.text]]
    else:
        lines = block.text.replace("\\\n", " ").splitlines()
        commands = [["bash", "-c", line] for line in lines if line.strip()]
    for command in commands:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode in (OK, GOAL_MISSED), f"{command[-1]}\n{done.stdout}{done.stderr}"
