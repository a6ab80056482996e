"""The pages that the documentation site is built from; mkdocs itself is `make docs`."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from distforge.baking import Step1Config
from distforge.cli import COMMANDS
from distforge.settings import settings_of
from tests.documented import ROOT, blocks


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("docs") / "pages"
    runpy.run_path(str(ROOT / "docs" / "pages.py"))["write_pages"](output)
    return output


def test_the_site_has_every_page_and_no_other(pages: Path) -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in pages.glob("*.md"))


def test_links_between_pages_lead_somewhere(pages: Path) -> None:
    for page in pages.glob("*.md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (pages / target).is_file(), f"{page.name}: {target}"


def test_every_key_stands_on_its_page_with_its_default(pages: Path) -> None:
    text = (pages / "configuration.md").read_text("utf-8")
    part = text[text.index("## distforge bake\n") : text.index("## distforge think\n")]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    found = settings_of(Step1Config)
    assert len(rows) == len(found)
    for setting in found:
        start = f"| `{setting.name.rpartition('.')[2]}` | "
        assert any(row.startswith(start) and f"`{setting.default}`" in row for row in rows)


def test_every_command_and_every_measurement_has_its_place(pages: Path) -> None:
    commands = (pages / "commands.md").read_text("utf-8")
    assert re.findall(r"^## distforge (.+)$", commands, re.MULTILINE) == [*COMMANDS]
    results = (pages / "results.md").read_text("utf-8")
    files = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    assert re.findall(r"^## (.+)$", results, re.MULTILINE) == files


def test_every_dependency_has_a_licence_that_lets_distforge_be_passed_on(pages: Path) -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", (pages / "licences.md").read_text(), re.M)
    licences = {name: licence for name, _, licence in rows if name not in ("package", "---")}
    assert {"torch", "transformers", "safetensors"} <= licences.keys()
    for name, licence in licences.items():
        assert re.search("Apache|BSD|MIT|MPL|Mozilla|ISC|PSF|Python Software", licence), name
        assert not re.search(r"\bA?GPL", licence), name


def test_notebooks_say_what_their_pages_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "notebooks.py"))
    kept = {path.stem: path.read_text("utf-8") for path in ROOT.glob("docs/examples/*.ipynb")}
    assert kept == {name: made["notebook"](*of) for name, of in made["NOTEBOOKS"].items()}
    cells = [cell for text in kept.values() for cell in json.loads(text)["cells"]]
    said = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    shown = [block for of in made["NOTEBOOKS"].values() for block in blocks(f"docs/{of[0]}")]
    python = [block.text for block in shown if block.language == "python"]
    assert "%%writefile rewards.py\ndef score(" in said
    assert said.count("!distforge bake-prompt --model ") == 4
    assert len(python) == 2
    assert all(text in said for text in python)
