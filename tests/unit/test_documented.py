"""What README and docs show exists: every command, option, file and target that they name."""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from distforge.cli import COMMANDS
from distforge.settings import settings_of
from tests.documented import FILES, ROOT, Block, blocks, commands, inline_commands, parse

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
    for words in commands(block):
        require_exists(words)


@pytest.mark.parametrize("file", FILES)
def test_commands_and_options_in_sentences_exist(file: str) -> None:
    for text in inline_commands(file):
        require_exists(text.split())


def require_exists(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= {*targets}
    if words[0] != "distforge" or words[1] == "--help":
        return
    name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
    assert name in COMMANDS
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options(name), words


def test_only_what_needs_another_machine_is_not_run() -> None:
    for block in BLOCKS:
        assert re.fullmatch("|a second host.*|a GPU|it runs this very test", block.why_not)
        if block.run_by:
            test = ROOT / block.run_by
            assert f'"{block.file}"' in test.read_text(encoding="utf-8")


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


PAGE = """
Text. <!-- first: not a mark, it stands in a paragraph -->

    --- a drawing ---

<!-- not run: a second host -->

    make run

<!-- first:
import torch

    torch.nn
-->

```python
torch.ones(1)
```

Write `rewards.py`:

```python
def score(): ...
```

<!-- run by: tests/x.py -->

    distforge bake \\
        --name a   # why
"""


def test_what_is_said_in_front_of_a_block() -> None:
    found = {block.text: block for block in parse(PAGE, "f")}
    assert found["make run"].why_not == "a second host"
    assert found["torch.ones(1)"].first == "import torch\n\n    torch.nn"
    assert found["def score(): ..."].saved_as == "rewards.py"
    [last] = [block for block in found.values() if block.run_by]
    assert last.run_by == "tests/x.py"
    assert commands(last) == [["distforge", "bake", "--name", "a"]]
    assert [(block.why_not, block.saved_as) for block in found.values()].count(("", "")) == 2


def test_blocks_are_told_from_drawings() -> None:
    assert {block.file for block in SHELL} >= {"README.md", "docs/judge.md", "docs/registry.md"}
    first = next(block for block in SHELL if block.file == "README.md")
    assert commands(first)[0] == ["make", "run"]
    joined = Block("f", 1, "shell", "A_B=c distforge x \\\n  --y z  # why\n\nmake b")
    assert commands(joined) == [["distforge", "x", "--y", "z"], ["make", "b"]]
