"""What README and docs show exists: every command, option, file and target that they name."""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from distforge.cli import COMMANDS
from distforge.settings import settings_of
from tests.documented import FILES, ROOT, Block, blocks, commands

BLOCKS = [block for file in FILES for block in blocks(file)]
SHELL = [block for block in BLOCKS if block.language == "shell"]


def options(name: str) -> set[str]:
    """All that the command takes."""
    command = COMMANDS[name]
    module = importlib.import_module(f"distforge.commands.{command.module}")
    cls = getattr(module, command.config)
    known = {"--config", "--help", "--help-all"}
    for setting in settings_of(cls):
        section, dot, last = setting.option.removeprefix("--").rpartition(".")
        known |= {setting.option, f"--{section}{dot}no-{last}", f"--{setting.short}"}
    return known


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_documented_commands_and_options_exist(block: Block) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for words in commands(block):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= {*targets}
        if words[0] != "distforge" or words[1] == "--help":
            continue
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
        assert name in COMMANDS
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options(name), f"{block.name}: {name}"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_files_of_the_repository_that_are_named_exist(block: Block) -> None:
    for words in commands(block):
        for word in words:
            if re.match(r"(configs|launch|docs|benchmarks)/\S+\.\w+$", word):
                assert (ROOT / word).is_file(), word


def test_python_that_is_shown_is_python() -> None:
    python = [block for block in BLOCKS if block.language == "python"]
    assert len(python) > 3
    for block in python:
        ast.parse(block.text)


def test_blocks_are_told_from_drawings() -> None:
    assert {block.file for block in SHELL} >= {"README.md", "docs/judge.md", "docs/registry.md"}
    first = next(block for block in SHELL if block.file == "README.md")
    assert commands(first)[0] == ["make", "run"]
    joined = Block("f", 1, "shell", "A_B=c distforge x \\\n  --y z  # why\n\nmake b")
    assert commands(joined) == [["distforge", "x", "--y", "z"], ["make", "b"]]
