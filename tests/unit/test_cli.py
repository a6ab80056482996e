"""Finding a command: lists, groups, and names that are nearly right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distforge.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_table_of_contents(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(
            line.split(maxsplit=len(name.split())) == [*name.split(), command.help]
            for line in lines
        )


@pytest.mark.parametrize("words", [["registry", "--help"], ["help", "registry"], ["data", "-h"]])
def test_a_group_lists_its_commands_alone(words, capsys):
    assert main(words) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    group = next(word for word in words if word in ("registry", "data"))
    assert listed == [group] * sum(name.startswith(f"{group} ") for name in COMMANDS)


def test_help_of_a_command_is_its_own(capsys):
    assert main(["help", "doctor"]) == 0
    assert "distforge doctor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bak"], "unknown command 'bak'; did you mean 'bake'?"),
        (["registry", "shw", "x"], "unknown command 'registry shw'; did you mean 'registry show'?"),
        (["evalute", "--items", "3"], "unknown command 'evalute'; did you mean 'evaluate'?"),
        (["hepl", "bake"], "unknown command 'hepl'; did you mean 'help'?"),
        (["data"], "'data' needs one more word; expected data make, data check, data show"),
        (["data", "xyzzy"], "unknown command 'data xyzzy'; expected data make, data check, data"),
        (["xyzzy"], "unknown command 'xyzzy'; `distforge --help` lists them"),
    ],
)
def test_what_is_said_of_a_command_that_does_not_exist(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_python_m_distforge_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "distforge", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout[0].isdigit()
