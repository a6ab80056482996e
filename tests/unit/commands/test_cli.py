"""The command line as a shell meets it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from distforge.activity import doing
from distforge.cli import BAD_INPUT, OK, OUTPUT_CLOSED, main
from distforge.errors import InputError, RunStopped


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        (InputError("x is 3; expected 4"), 2, "error: x is 3; expected 4\n"),
        (OSError(28, "full", "runs/x"), 2, "error: runs/x: No space left on device; free space "),
        (FloatingPointError("5 steps in a row"), 3, "stopped: 5 steps in a row\n"),
        (RunStopped("step 5 of 8 is saved"), 75, "stopped by a signal: step 5 of 8 is saved; "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_exit_status_tells_how_a_command_ended(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    ending: Exception,
    status: int,
    said: str,
) -> None:
    def end(_config: object) -> int:
        raise ending

    monkeypatch.setattr("distforge.commands.doctor.doctor", end)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err.startswith(said)


def test_a_silent_command_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    told = threading.Event()

    def wait(_config: object) -> int:
        with doing("waiting for a line") as count:
            count(1, 4)
            return int(not told.wait(60))

    def say(line: str) -> None:
        print(line, file=sys.stderr)
        if line.startswith("waiting"):
            told.set()

    monkeypatch.setattr("distforge.commands.doctor.doctor", wait)
    monkeypatch.setattr("distforge.cli._say", say)
    monkeypatch.setenv("DISTFORGE_SILENCE_SECONDS", "1")
    assert main(["doctor"]) == OK
    assert "waiting for a line: 1 of 4  elapsed 0:0" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "soon"])
def test_how_long_silence_may_last_is_a_number(
    seconds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("DISTFORGE_SILENCE_SECONDS", seconds)
    assert main(["doctor"]) == BAD_INPUT
    assert f"DISTFORGE_SILENCE_SECONDS is '{seconds}'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["bake", "--help"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_fault(words: list[str]) -> None:
    """As in ``distforge bake --help | head -1``."""
    command = f"import sys; from distforge.cli import main; sys.exit(main({words}))"
    with subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=60)
    assert process.returncode == OUTPUT_CLOSED
    assert errors == ""


def test_the_launchers_word_may_stand_before_the_command(capsys):
    # deepspeed --module distforge.cli bake … starts `python -m distforge.cli --local_rank=0 bake …`
    assert main(["--local_rank=1", "--version"]) == OK
    assert main(["--local_rank=1", "no-such-command"]) == BAD_INPUT
    assert "unknown command 'no-such-command'" in capsys.readouterr().err


def test_an_unknown_configuration_is_one_line_that_lists_the_shipped_ones(capsys):
    assert main(["bake", "--config", "quack"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "quick" in said
