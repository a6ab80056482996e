"""Finding a command: lists, groups, and names that are nearly right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distforge.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
GROUPS = sorted({name.split()[0] for name in COMMANDS} - {*COMMANDS})


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["help", "help"]])
def test_the_table_of_contents(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, command in COMMANDS.items():
        assert any(
            line.split(maxsplit=len(name.split())) == [*name.split(), command.help]
            for line in lines
        )


@pytest.mark.parametrize(
    "words", [["registry", "--help"], ["help", "registry"], ["data", "-h"], ["data", "help"]]
)
def test_a_group_lists_its_commands_alone(words, capsys):
    assert main(words) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    group = next(word for word in words if word in ("registry", "data"))
    assert listed == [group] * sum(name.startswith(f"{group} ") for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS, ""])
def test_every_usage_line_is_the_commands_own(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([*command.split(), "--help"], ["help", *command.split()]):
        assert main(words) == 0
        usage, *_ = capsys.readouterr().out.split("\n\n")
        assert max(map(len, usage.splitlines())) <= 80
        first = usage.split()
        expected = ["usage:", "distforge", *command.split()]
        assert first[: len(expected)] == expected
        assert first[len(expected)] == "COMMAND" or command in COMMANDS


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_says_how_to_go_on(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group, "--help"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"distforge {group} COMMAND --help lists the command's settings."
    assert main([group, "xyzzy"]) == 2
    own = [name for name in COMMANDS if name.split()[0] == group]
    assert f"unknown command '{group} xyzzy'; expected {', '.join(own)}" in capsys.readouterr().err
    for name in own:  # also where another group has a command of nearly that name
        assert main(f"{name}e".split()) == 2
        assert f"did you mean {name!r}?" in capsys.readouterr().err


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
        (["regsitry", "list"], "unknown command 'regsitry'; did you mean 'registry'?"),
        (["make"], "unknown command 'make'; did you mean 'champion make' or 'data make'?"),
        (["serve"], "unknown command 'serve'; did you mean 'registry serve'?"),
        (["--hlep"], "unknown command '--hlep'; did you mean '--help'?"),
        (["--config", "quick"], "'--config' comes behind a command's name; `distforge --help`"),
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
