"""The command line as a shell meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distforge.cli import OUTPUT_CLOSED


@pytest.mark.parametrize("words", [["bake", "--help"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_fault(words: list[str]) -> None:
    """As in ``distforge bake --help | head -1``."""
    command = f"import sys; from distforge.cli import main; sys.exit(main({words}))"
    with subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=60)
    assert process.returncode == OUTPUT_CLOSED
    assert errors == ""
