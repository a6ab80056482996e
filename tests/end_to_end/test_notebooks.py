"""The example notebooks run from their first cell to their last, as Jupyter would run them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from distforge.cli import GOAL_MISSED, OK
from tests.documented import ROOT, blocks
from tests.documented_folder import run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))


def run_elsewhere() -> set[str]:
    """The commands of the pages that are for another test, or for none."""
    pages = [f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))]
    marked = [block for page in pages for block in blocks(page) if block.run_by or block.why_not]
    texts = [block.text.replace("\\\n", " ") for block in marked]
    return {" ".join(line.split()) for text in texts for line in text.splitlines()}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, folder: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for text in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        first, _, rest = text.partition("\n")
        if first.startswith("%%writefile "):
            (folder / first.split()[1]).write_text(rest, encoding="utf-8")
            continue
        if first.startswith("!"):
            lines = [line.removeprefix("!") for line in text.splitlines()]
            lines = [line for line in lines if line not in run_elsewhere()]
        else:
            lines = [f"{shlex.quote(sys.executable)} -c {shlex.quote(text)}"]
        for line in lines:
            done = run(folder, line)
            assert done.returncode in (OK, GOAL_MISSED), f"{line}\n{done.stdout}{done.stderr}"
