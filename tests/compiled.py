"""What tests compile, kept in ``build/tests`` for as long as neither sources nor command change."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.shared import build_once

ROOT = Path(__file__).parents[1]
# Headers are not followed: whatever changes in one of these compiles everything anew.
SOURCES = ("csrc", "tests/native")


def compile_once(command: Sequence[str], name: str, seconds: float) -> Path:
    """The directory with what ``command -o .../name`` wrote, and with what it said in ``log``."""
    digest = hashlib.sha256(repr((command, version(command[0]), name)).encode())
    for path in sorted(p for source in SOURCES for p in (ROOT / source).rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())

    def build(directory: Path) -> None:
        done = subprocess.run(
            [*command, "-o", str(directory / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stderr
        (directory / "log").write_text(done.stdout + done.stderr)

    return build_once(f"{name}-{digest.hexdigest()[:16]}", build, ROOT / "build" / "tests")


def version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
