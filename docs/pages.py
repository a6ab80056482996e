"""The pages of the documentation site: the guides, and what is written from the code.

    python docs/pages.py build/docs

`make docs` runs it in the environment of the package, then mkdocs in one of its own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distforge.cli import COMMANDS
from distforge.help import help_text
from distforge.settings import Setting, section_texts, settings_of, summary

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# What users import, by the room that has it.
API = {
    "The optimizer": ["optim.MuonGrokfast", "optim.MuonGrokfastConfig"],
    "Operators": ["ops.newton_schulz", "ops.grokfast_momentum_", "ops.backend"],
    "Data": ["data.ReasoningDataset"],
    "Baking": ["baking.run_step1_baking", "baking.PromptBaker", "baking.PromptBakingTrainer"],
    "Thoughts": ["quietstar.run_step2_rl", "quietstar.ThinkingModel"],
    "The verdict": ["theater.evaluate_theater", "theater.Verdict"],
    "The registry": ["registry.ModelRegistry"],
    "Telemetry": ["telemetry.WandBLogger"],
    "Text to ids and back": ["rendering.Renderer"],
}
# Where on the site lies what the repository has in a folder.
_PLACES = {"benchmarks/README.md": "benchmarks.md", "benchmarks/": "", "docs/": ""}
# Commands whose settings have a part of the page of their own; the others' help says it all.
CONFIGURATIONS = ("run", "bake", "think", "bake-prompt", "judge", "evaluate", "champion make")


def write_pages(output: Path) -> None:
    """Write all pages into ``output``, which is made anew."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(RESULTS, output / "results", ignore=shutil.ignore_patterns("*.json"))
    pages = {guide.stem: _read(f"docs/{guide.name}") for guide in (ROOT / "docs").glob("*.md")}
    pages |= {
        "index": _read("README.md"),
        "benchmarks": _read("benchmarks/README.md"),
        "changelog": _read("CHANGELOG.md"),
        "security": _read("SECURITY.md"),
        "commands": "\n".join(commands_page()),
        "configuration": "\n".join(configuration_page()),
        "api": "\n".join(api_page()),
        "licences": "\n".join(licences_page()),
    }
    for name, text in pages.items():
        (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def commands_page() -> Iterator[str]:
    """The help of every command."""
    yield "# Commands\n"
    for name in COMMANDS:
        cls, matter = _configuration(name)
        shown = help_text(cls, f"distforge {name}", matter)
        yield f"## distforge {name}\n\n```text\n{shown}\n```\n"


def configuration_page() -> Iterator[str]:
    """Every key of every configuration, with its default and its description."""
    yield "# Every configuration key\n"
    yield "A key is written in a TOML file under its table, or on the command line as"
    yield "`--table.key value`. `distforge COMMAND --help-all` prints the same.\n"
    for name in CONFIGURATIONS:
        cls, _ = _configuration(name)
        yield f"## distforge {name}\n\n{summary(cls)}\n"
        if name == "run":
            yield "Keys of step 1 are those of `distforge bake`, below; those of step 2 stand in"
            yield "`[step2]` and are those of `distforge think`. Its own are:\n"
        known = {setting.name for setting in settings_of(_configuration("bake")[0])}
        found = [s for s in settings_of(cls) if name != "run" or s.name not in known]
        yield from _tables(found, section_texts(cls))


def _tables(found: list[Setting], texts: dict[str, str]) -> Iterator[str]:
    for section in dict.fromkeys(setting.section for setting in found):
        if section:
            yield f"### [{section}]\n\n{texts.get(section, '')}\n"
        yield "| key | takes | default | |\n|---|---|---|---|"
        for setting in found:
            if setting.section == section:
                key = setting.name.rpartition(".")[2]
                default = f"`{setting.default}`" if setting.default else "required"
                cells = (f"`{key}`", setting.kind, default, setting.text)
                yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def api_page() -> Iterator[str]:
    """What mkdocstrings makes of the public names."""
    yield "# Python\n"
    for title, names in API.items():
        yield f"## {title}\n"
        yield from (f"::: distforge.{name}\n" for name in names)


def licences_page() -> Iterator[str]:
    """What the locks pin, each with the licence that it names itself.

    Raises:
        PackageNotFoundError: one that is not installed; `make setup` installs them all.
    """
    yield "# Licences\n"
    yield "distforge is under Apache-2.0. What `make setup` installs, as each says of itself:\n"
    yield "| package | version | licence |\n|---|---|---|"
    for name, version in sorted(pinned()):
        yield f"| {name} | {version} | {_licence(name)} |"


def pinned() -> list[tuple[str, str]]:
    """Names and versions of the packages that are installed beside distforge."""
    texts = (_read(name) for name in ("requirements.lock", "requirements-torch.lock"))
    return [pin for text in texts for pin in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)]


def _licence(package: str) -> str:
    metadata = importlib.metadata.metadata(package)
    classifiers = metadata.get_all("Classifier") or []
    named = [text.split(" :: ")[-1] for text in classifiers if text.startswith("License ::")]
    stated = (metadata.get("License") or "").split("\n")[0]
    return metadata.get("License-Expression") or ", ".join(named) or stated or "not stated"


def _configuration(name: str) -> tuple[type[Any], tuple[str, ...]]:
    command = COMMANDS[name]
    module = importlib.import_module(f"distforge.commands.{command.module}")
    return getattr(module, command.config), getattr(module, "MATTER", {}).get(name, ())


def _read(name: str) -> str:
    """A page of the repository, its links as they go on the site, where all pages lie together."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for there, here in _PLACES.items():
        text = text.replace(f"]({there}", f"]({here}").replace(f"](../{there}", f"]({here}")
    return text


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
