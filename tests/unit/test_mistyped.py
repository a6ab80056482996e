"""What a wrong command line is told: the word that is wrong, and the one that was meant."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from distforge.config import load_config
from distforge.errors import InputError
from distforge.mistyped import what_is_wrong
from distforge.settings import settings_of


@dataclass(frozen=True)
class Steps:
    """max_steps: how many. lr, muon_lr: how far."""

    max_steps: int = 3
    lr: float = 0.5
    muon_lr: float = 0.5


@dataclass(frozen=True)
class Command:
    """model: a directory, or ``hf://NAME``. shell: which."""

    model: Annotated[str, tyro.conf.Positional]
    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional] = "bash"
    data: str = ""
    dtype: Literal["auto", "float32", "float16"] = "auto"
    level: Literal["a", "b"] | None = None
    numbers: tuple[int, ...] = ()
    pair: tuple[float, float] = (1.0, 2.0)
    dry_run: bool = False
    training: Steps = field(default_factory=Steps)
    teacher: Steps = field(default_factory=Steps)
    absent: Steps | None = None


PROG = "distforge thing"
RIGHT = [
    "m",
    "m zsh",
    "--data x m",
    "m --dry-run zsh",
    "m --no-dry-run --training.max_steps -4",
    "m --training.lr=1e-3 --level None --level=b",
    "m --numbers 1 2 3 --pair -1 2.5",
    "m --numbers",
]


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_right_is_not_refused(line: str) -> None:
    assert load_config(Command, None, line.split(), prog=PROG).model == "m"
    assert what_is_wrong(line.split(), settings_of(Command), PROG) == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "`distforge thing` needs MODEL (a directory, or hf://NAME)"),
        (
            "m --trainnig.max-steps 3",
            "unknown option --trainnig.max-steps; did you mean --training",
        ),
        ("m --max-steps 3", "did you mean --training.max-steps or --teacher.max-steps?"),
        ("m --teacher.mx_steps 3", "--teacher.mx-steps; did you mean --teacher.max-steps?"),
        ("m --rl 3", "unknown option --rl; `distforge thing --help-all` describes all"),
        ("m --lr 3", "unknown option --lr; did you mean --training.lr or --teacher.lr?"),
        ("m --hepl", "unknown option --hepl; did you mean --help?"),
        ("m --confg x", "unknown option --confg; did you mean --config?"),
        ("m -n 3", "unknown option -n; `distforge thing --help-all` describes all"),
        ("m --absent.lr 3", "--absent.lr cannot be set: there is no absent here; give one, as a"),
        ("m --training.max-steps 1.5", "--training.max-steps is '1.5'; expected a whole number"),
        ("m --training.lr=much", "--training.lr is 'much'; expected a number"),
        ("m --dtype int4", "--dtype is 'int4'; expected one of auto, float32, float16"),
        ("m --level c", "--level is 'c'; expected one of a, b, none"),
        ("m --numbers 1 two", "--numbers is 'two'; expected a whole number"),
        ("m --pair 1", "--pair has no value; expected a number behind it"),
        ("m --data --dry-run", "--data has no value; expected a text behind it"),
        ("m fish", "SHELL is 'fish'; expected bash or zsh"),
        ("m zsh more", "'more' is one word too many; `distforge thing --help` shows what it"),
        ("m zsh --dry-run yes", "'yes' is one word too many; --dry-run takes no value, and its"),
    ],
)
def test_what_is_wrong_is_one_line_that_helps(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Command, None, line.split(), prog=PROG)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_every_slip_in_one_letter_is_understood() -> None:
    """Whatever option of two sections, whatever letter of it is left out."""
    options = [s.option for s in settings_of(Command) if "." in s.option]
    assert len(options) == 6
    for option, place in itertools.product(options, range(2, 30)):
        slip = option[:place] + option[place + 1 :]
        if slip not in options and len(slip) < len(option):
            assert f"did you mean {option}?" in what_is_wrong(
                ["m", slip, "1"], settings_of(Command), PROG
            )
