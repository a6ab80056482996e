"""What bash offers behind ``distforge``, from the script that the command prints."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from distforge.cli import COMMANDS, main


@pytest.fixture(scope="module")
def script() -> str:
    from distforge.commands.completion import _script

    return _script()


def offered(script: str, line: str) -> list[str]:
    """By bash itself, of a line whose last word is being typed."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _distforge"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_the_first_word_is_a_command_or_a_group(script):
    assert set(offered(script, "distforge ")) == {"help"} | {n.split()[0] for n in COMMANDS}
    assert offered(script, "distforge ba") == ["bake", "bake-prompt"]


def test_a_group_offers_its_commands(script):
    assert offered(script, "distforge data ") == ["make", "check", "show"]
    assert offered(script, "distforge registry li") == ["list", "lineage"]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("distforge bake --champion.pa", ["--champion.path"]),
        ("distforge data show --st", ["--strategy"]),
        ("distforge bake --dry-run --help", ["--help", "--help-all"]),
        ("distforge evaluate --data", {"--data", "--data.path", "--data.num-examples"}),
    ],
)
def test_a_command_offers_its_options(line, options, script):
    found = offered(script, line)
    assert found == options if isinstance(options, list) else options <= {*found}


def test_zsh_gets_the_same_by_its_emulation_of_bash(script, capsys):
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef distforge\n")
    assert printed.endswith(script)
    if shutil.which("zsh"):
        assert subprocess.run(["zsh", "-n", "-c", printed], timeout=60).returncode == 0
