"""The pages of the documentation site: the guides, and what is written from code and results.

    python docs/pages.py build/docs

`make docs` runs it in the environment of the package, then mkdocs in one of its own.
"""

from __future__ import annotations

import ast
import importlib
import json
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
# Commands whose settings have a part of the page of their own; the others' help says it all.
CONFIGURATIONS = ("run", "bake", "think", "bake-prompt", "judge", "evaluate", "champion make")


def write_pages(output: Path) -> None:
    """Write all pages into ``output``, which is made anew."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(RESULTS, output / "results", ignore=shutil.ignore_patterns("*.json"))
    for guide in sorted((ROOT / "docs").glob("*.md")):
        shutil.copy(guide, output)
    pages = {
        "index": _read("README.md").replace("](docs/", "](").replace("](benchmarks/", "]("),
        "benchmarks": _read("benchmarks/README.md"),
        "changelog": _read("CHANGELOG.md"),
        "security": _read("SECURITY.md"),
        "commands": "\n".join(commands_page()),
        "configuration": "\n".join(configuration_page()),
        "api": "\n".join(api_page()),
        "results": "\n".join(results_page()),
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


def results_page() -> Iterator[str]:
    """The committed figures, as tables; `ratio` is above 1 where ours is better."""
    yield "# Figures\n"
    yield "Each table is a file of `benchmarks/results`, written by the script that it names."
    yield "A ratio above 1 means that distforge's is better.\n"
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        script = ROOT / "benchmarks" / f"bench_{path.stem.split('_a')[0]}.py"
        yield f"## {path.stem}\n\n{_first_line(script)}\n"
        yield f"`benchmarks/{script.name}`, on {_machine(found['machine'])}.\n"
        if path.with_suffix(".png").exists():
            yield f"![{path.stem}](results/{path.stem}.png)\n"
        yield "| measured | distforge | compared with | its value | unit | ratio |"
        yield "|---|---|---|---|---|---|"
        for row in found["rows"]:
            cells = [row["work"], _number(row["ours"]), row["peer"], _number(row["peer_value"])]
            cells += [row["unit"], _number(row["ratio"])]
            yield "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"
        yield ""


def _machine(machine: dict[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine['cores']} cores of {machine['cpu']} ({machine['capability']}){gpu}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _first_line(script: Path) -> str:
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return re.sub(r"\s+", " ", doc.split("\n\n")[0])


def _configuration(name: str) -> tuple[type[Any], tuple[str, ...]]:
    command = COMMANDS[name]
    module = importlib.import_module(f"distforge.commands.{command.module}")
    return getattr(module, command.config), getattr(module, "MATTER", {}).get(name, ())


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
