"""What can be set, read from configuration classes, and the help that is made of it."""

from __future__ import annotations

import importlib
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from distforge.cli import COMMANDS, main
from distforge.help import help_text
from distforge.settings import (
    field_texts,
    kind_name,
    section_texts,
    settings_of,
    summary,
    toml_value,
)


@dataclass(frozen=True)
class Inner:
    """How it is done.

    Group
        speed: how fast, in m/s; heat: how hot.
        long: a text that goes
            on and on. quiet: whether to speak, which
            is its own entry.

    Raises:
        ValueError: speed: never.
    """

    SHORT: ClassVar[str] = "long"

    speed: float = 1.5
    heat: int | None = None
    long: str = "a b"
    quiet: bool = False


@dataclass(frozen=True)
class Outer:
    """Does something.

    And says ``more`` of it,
    in two lines.

    where: to. ``one``, two: both at once.
    """

    where: Path
    one: Literal["x", "y"] = "x"
    two: tuple[int, ...] = (1, 2)
    undescribed: str = ""
    inner: Inner = field(default_factory=lambda: Inner(speed=3.0))
    absent: Inner | None = None


def test_each_field_has_its_own_text():
    assert field_texts(Inner) == {
        "speed": "how fast, in m/s",
        "heat": "how hot.",
        "long": "a text that goes on and on.",
        "quiet": "whether to speak, which is its own entry.",
    }
    assert field_texts(Outer) == {"where": "to.", "one": "both at once.", "two": "both at once."}
    assert summary(Outer) == "Does something.\nAnd says ``more`` of it, in two lines."


def test_settings_come_with_their_types_and_defaults():
    found = {setting.name: setting for setting in settings_of(Outer)}
    assert {name: (s.kind, s.default) for name, s in found.items()} == {
        "where": ("PATH", ""),
        "one": ("x|y", '"x"'),
        "two": ("INT ...", "[1, 2]"),
        "undescribed": ("TEXT", '""'),
        "absent": ("TABLE|none", '"none"'),
        "inner.speed": ("NUMBER", "3"),
        "inner.heat": ("INT|none", '"none"'),
        "inner.long": ("TEXT", '"a b"'),
        "inner.quiet": ("yes|no", "false"),
    }
    assert found["inner.long"].short == "inner"
    of_these = settings_of(Outer, Outer(Path("p"), absent=Inner(heat=3)))
    assert {s.name: s.default for s in of_these}["absent.heat"] == "3"


def test_values_read_as_in_a_file():
    assert [toml_value(v) for v in (True, 1e-8, 0.1 + 0.2, (), Path("a/b"), 'say "é"')] == [
        "true",
        "1e-08",
        "0.30000000000000004",
        "[]",
        '"a/b"',
        '"say \\"é\\""',
    ]
    assert kind_name(tuple[float, float]) == "NUMBER NUMBER"


def test_help_shows_the_settings_that_matter_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    short = help_text(Outer, "tool do", ("inner.quiet", "where"))
    assert short == textwrap.dedent(
        """\
        usage: tool do [--config FILE.toml] [--SETTING VALUE ...]

        Does something.

        And says more of it, in two lines.

          --inner.quiet, --inner.no-quiet  [no]
              whether to speak, which is its own entry.
          --where PATH  [required]
              to.

        These are 2 of 9 settings; `tool do --help-all` shows all.
        Each can be set in a TOML file or on the command line."""
    )
    whole = help_text(Outer, "tool do", ("inner.quiet",), everything=True)
    assert "[inner] How it is done.\n  --inner.speed NUMBER  [3]\n" in whole
    assert "  --inner.long TEXT (or --inner)  [a b]\n" in whole
    assert all(f"--{s.name.replace('_', '-')}" in whole for s in settings_of(Outer))


def configuration(name: str) -> tuple[type, tuple[str, ...]]:
    command = COMMANDS[name]
    module = importlib.import_module(f"distforge.commands.{command.module}")
    return getattr(module, command.config), getattr(module, "MATTER", {}).get(name, ())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_of_every_command_is_described(name):
    cls, _ = configuration(name)
    assert [setting.name for setting in settings_of(cls) if len(setting.text) < 3] == []
    assert summary(cls)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_a_text_of_its_own(name: str) -> None:
    """Read alone, as in help: not half of a sentence about two, nor a name of the code's."""
    cls, _ = configuration(name)
    found = settings_of(cls)
    known = {part for setting in found for part in setting.name.split(".")}
    owners: dict[tuple[str, str], str] = {}
    for setting in found:
        other = owners.setdefault((setting.section, setting.text), setting.name)
        assert other == setting.name, f"{setting.name} says what {other} says"
    for text in [summary(cls), *(setting.text for setting in found), *section_texts(cls).values()]:
        assert {*re.findall(r"(?<!`)`(\w[\w.]*)`(?!`)", text)} <= known, text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_settings_that_matter_exist_and_fit_a_screen(name):
    cls, matter = configuration(name)
    known = {setting.name for setting in settings_of(cls)}
    if name == "run":
        from distforge.quietstar import Step2Config

        known = {setting.name for setting in settings_of(cls, cls(step2=Step2Config()))}
    assert {*matter} <= known
    assert len({*matter}) == len(matter) <= 20
    assert matter or len(known) <= 20


def test_the_help_of_a_command_is_short_and_all_of_it_is_long(capsys):
    assert main(["bake", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["bake", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(short.splitlines()) < 80 < 400 < len(whole.splitlines())
    assert "`" not in short.replace("`distforge bake --help-all`", "")
    assert "--optimizer.muon-grokfast.neuron-beta" in whole
    assert "--optimizer.muon-grokfast.neuron-beta" not in short


def test_help_shows_what_a_file_sets(capsys):
    assert main(["bake", "--config", "quick", "--help"]) == 0
    assert "--training.batch-size INT  [16]" in capsys.readouterr().out


def test_a_configuration_for_another_command_is_named(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text('model = "m"\nbatch_size = 3\n')
    assert main(["bake", "--config", str(path)]) == 2
    assert (
        capsys.readouterr()
        .err.rstrip()
        .endswith("; it is a configuration for `distforge evaluate`")
    )
    path.write_text("training.max_step = 3\n[step2]\n")
    assert main(["bake", "--config", str(path)]) == 2
    said = capsys.readouterr().err.rstrip()
    assert said.endswith("unknown key training.max_step; did you mean training.max_steps?")
    path.write_text("[step2]\nbakde = 'x'\n")
    assert main(["think", "--config", str(path)]) == 2
    assert capsys.readouterr().err.rstrip().endswith("step2.bakde; did you mean step2.baked?")
    path.write_text('modle = "m"\n')
    assert main(["bake", "--config", str(path)]) == 2
    assert "it is a configuration for" not in capsys.readouterr().err
