"""The command line: ``distforge COMMAND [--config FILE.toml] [--section.key value …]``.

Every command is a function of one configuration. Exit status: 0 success, 1 `doctor` misses
something, 2 bad input, 3 a run that ended without meeting its goal, 75 a run that was stopped and
can be resumed, 141 nobody reads what it prints any more.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distforge.activity import doing, watched
from distforge.errors import InputError, RunStopped, explain_file_error
from distforge.extras import MissingExtra
from distforge.help import HELP, HELP_ALL, help_text
from distforge.training.outcome import STATUS, Outcome, tell_launcher

OK, BAD_INPUT = STATUS["met"], STATUS["refused"]
GOAL_MISSED, STOPPED = STATUS["missed"], STATUS["stopped"]
# What a shell tells of a program that a closed pipe ended: 128 and the signal's number.
OUTPUT_CLOSED = 141
# After so many seconds without output, 10 by default, a command says what it does.
SILENCE_VARIABLE = "DISTFORGE_SILENCE_SECONDS"


@dataclass(frozen=True)
class Command:
    """Where a command lives: imported when it is called, so that --help stays quick.

    ``table`` and ``ignore`` are those of `load_config`: one file can describe a whole pipeline.
    """

    module: str
    function: str
    config: str
    help: str
    table: str = ""
    ignore: tuple[str, ...] = ()


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run", "run", "PipelineConfig", "phase 3: champion, step 1, step 2, verdict, report"
    ),
    "report": Command(
        "report",
        "report",
        "ReportConfig",
        "make a run's report again; --follow keeps it up to date",
    ),
    "bake": Command(
        "bake",
        "bake",
        "Step1Config",
        "step 1: bake the reasoning strategies in",
        ignore=("step2",),
    ),
    "think": Command(
        "think",
        "think",
        "Step2Config",
        "step 2: reinforcement learning on thoughts",
        table="step2",
    ),
    "bake-prompt": Command(
        "bake_prompt", "bake_prompt", "BakePromptConfig", "bake prompts into a model's weights"
    ),
    "champion make": Command("champion", "make", "MakeConfig", "make the embedded champion"),
    "champion import": Command(
        "champion",
        "import_",
        "ImportConfig",
        "turn a .gguf, .pt or .safetensors model into a champion",
    ),
    "data make": Command("data", "make", "MakeConfig", "make a verified reasoning dataset"),
    "data check": Command(
        "data", "check", "CheckConfig", "check every row, and that none leaks into training"
    ),
    "data show": Command("data", "show", "ShowConfig", "print an example of each kind of question"),
    "ask": Command("ask", "ask", "AskConfig", "ask a model questions and read what it writes"),
    "evaluate": Command(
        "evaluate",
        "evaluate",
        "EvaluateConfig",
        "measure a model on held-out questions or benchmarks",
    ),
    "judge": Command(
        "judge",
        "judge",
        "JudgeConfig",
        "whether a model's thoughts do the work: PASS, or THEATRE",
    ),
    "optim explain": Command(
        "optim", "explain", "ExplainConfig", "which parameters Muon trains, which AdamW, and why"
    ),
    "registry serve": Command("registry", "serve", "ServeConfig", "start the central registry"),
    "registry list": Command("registry", "list_", "ListConfig", "registered models, or sessions"),
    "registry show": Command(
        "registry", "show", "ShowConfig", "all that is known of a version; --download copies it"
    ),
    "registry promote": Command(
        "registry", "promote", "PromoteConfig", "point an alias, such as baked-best, at a version"
    ),
    "registry lineage": Command(
        "registry",
        "lineage",
        "LineageConfig",
        "where a version comes from, and what was made of it",
    ),
    "registry verify": Command("registry", "verify", "VerifyConfig", "check every file's sha256"),
    "registry relocate": Command(
        "registry", "relocate", "RelocateConfig", "correct paths after files were moved"
    ),
    "registry gc": Command("registry", "gc", "GcConfig", "remove old versions"),
    "handoff check": Command(
        "handoff", "check", "CheckConfig", "whether a model may go to the next phase"
    ),
    "trust": Command(
        "trust", "trust", "TrustConfig", "sign a run's checkpoints that came without their key"
    ),
    "bench": Command("bench", "bench", "BenchConfig", "the benchmarks in quick form, one table"),
    "doctor": Command("doctor", "doctor", "DoctorConfig", "whether this machine has what it needs"),
    "completion": Command(
        "completion", "completion", "CompletionConfig", "what a shell needs to complete commands"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = _without_launcher(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # UTF-8 like all that is written, whatever the locale: else a question that it has no
            # letters for would end a run.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return _dispatch_and_tell(words)
    except InputError as error:
        return _refuse(str(error))
    except FloatingPointError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return GOAL_MISSED
    except BrokenPipeError:
        return _output_closed()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich ends the program by itself
            return _output_closed()
        raise
    except RunStopped as stop:
        print(f"stopped by a signal: {stop}; resume with --resume auto", file=sys.stderr)
        return STOPPED
    except Exception as error:
        explained = explain_file_error(error)
        if not explained:
            raise
        return _refuse(f"{explained}, and give the command again: what was saved is there")


def _output_closed() -> int:
    """Whoever read the output, `head` say, has read enough."""
    # What the interpreter flushes at its end must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OUTPUT_CLOSED


def _refuse(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"error{'' if rank == '0' else f' (rank {rank})'}: {message}", file=sys.stderr)
    return BAD_INPUT


def _dispatch_and_tell(words: list[str]) -> int:
    """Whoever started this may turn the exit status into another one, so it is told."""
    tell_launcher(Outcome("running"))
    try:
        status = _dispatch(words)
        sys.stdout.flush()  # a closed pipe is met here, not when the interpreter ends
    except (BrokenPipeError, SystemExit):
        raise
    except BaseException as error:
        tell_launcher(Outcome.of_error(error))
        raise
    tell_launcher(Outcome.of_status(status))
    return status


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in (*HELP, "help"):
        print(_usage("distforge", COMMANDS))
        return OK
    if words[0] == "--version":
        from distforge import __version__

        print(__version__)
        return OK
    group = {name: command for name, command in COMMANDS.items() if name.split()[0] == words[0]}
    if words[0] not in COMMANDS and group and words[1:2] and words[1] in (*HELP, "help"):
        print(_usage(f"distforge {words[0]}", group))
        return OK
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name not in COMMANDS:
        raise InputError(_unknown(words, group))
    try:
        with watched(_say, _silence_seconds()), doing(name):
            return _call(name, words[len(name.split()) :])
    except MissingExtra as missing:
        raise missing.needed_by(f"`distforge {name}`") from missing


def _silence_seconds() -> float:
    text = os.environ.get(SILENCE_VARIABLE, "") or "10"
    if not text.isdecimal() or not int(text):
        raise InputError(
            f"{SILENCE_VARIABLE} is {text!r} in the environment; expected whole seconds, 1 or more"
        )
    return float(text)


def _say(line: str) -> None:
    """Rank 0 tells what goes on, where it does not mix with a command's output."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _call(name: str, words: list[str]) -> int:
    from distforge.config import UnknownKeyError, load_config

    command = COMMANDS[name]
    with doing("loading libraries"):
        module = importlib.import_module(f"distforge.commands.{command.module}")
    path, overrides = split_config(words)
    asks_help = {*HELP, HELP_ALL} & {*overrides}

    def load(words: Sequence[str]) -> Any:
        try:
            return load_config(
                getattr(module, command.config),
                path,
                words,
                prog=f"distforge {name}",
                table=command.table,
                ignore=command.ignore,
            )
        except UnknownKeyError as error:
            raise InputError(f"{error}{_whose(name, path)}") from error

    if asks_help:
        print(
            help_text(
                getattr(module, command.config),
                f"distforge {name}",
                getattr(module, "MATTER", {}).get(name, ()),
                *([load([])] if path else []),
                everything=HELP_ALL in asks_help,
            )
        )
        return OK
    return int(getattr(module, command.function)(load(overrides)))


def _whose(name: str, path: Path | None) -> str:
    """Which commands a file would suit, where it does not suit the one it was given to."""
    from distforge.config_files import top_level_keys

    keys = top_level_keys(path) if path else set()
    suited = []
    for other, command in COMMANDS.items():
        try:
            module = importlib.import_module(f"distforge.commands.{command.module}")
        except MissingExtra:
            continue
        known = {field.name for field in dataclasses.fields(getattr(module, command.config))}
        if keys and keys <= {*known, *command.ignore}:
            suited.append(other)
    if name in suited or COMMANDS[name].table in keys:  # what is wrong stands in a section
        return ""
    listed = " or ".join(f"`distforge {other}`" for other in suited)
    return f"; it is a configuration for {listed}" if suited else ""


def _without_launcher(words: Sequence[str]) -> list[str]:
    """Take out ``--local_rank=N``, which the deepspeed launcher puts before all other words."""
    return [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]


def split_config(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Take ``--config FILE`` out."""
    path: Path | None = None
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        flag, has_value, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        if not has_value:
            if not queue:
                raise InputError(f"{flag} has no value; expected one after it")
            value = queue.pop(0)
        path = Path(value)
    return path, rest


def _unknown(words: list[str], group: Mapping[str, Command]) -> str:
    """What to say of a command that does not exist; ``group``: those that begin with its word."""
    if group and len(words) == 1:
        return f"{words[0]!r} needs one more word; expected {', '.join(group)}"
    given = " ".join(words[:2] if group else words[:1])
    if group:
        following = {name.split()[1]: name for name in group}
        close = difflib.get_close_matches(words[1], following, n=1)
        if close:
            return f"unknown command {given!r}; did you mean {following[close[0]]!r}?"
        return f"unknown command {given!r}; expected {', '.join(group)}"
    known = [*COMMANDS, "help", *{name.split()[0] for name in COMMANDS}, "--help", "--version"]
    # The second word alone, such as `serve` of `registry serve`, or else a slip of the finger.
    meant = [name for name in COMMANDS if name.endswith(f" {given}")]
    meant = meant or difflib.get_close_matches(given, known, n=1)
    if given.startswith("-") and not meant:
        return f"{given!r} comes behind a command's name; `distforge --help` lists the commands"
    if meant:
        return f"unknown command {given!r}; did you mean {' or '.join(map(repr, meant))}?"
    return f"unknown command {given!r}; `distforge --help` lists them"


def _usage(prog: str, commands: Mapping[str, Command]) -> str:
    lines = [f"usage: {prog} COMMAND [--config FILE.toml] [--SETTING VALUE ...]", ""]
    lines += [f"  {name:17} {command.help}" for name, command in commands.items()]
    return "\n".join([*lines, "", f"{prog} COMMAND --help lists the command's settings."])


if __name__ == "__main__":
    sys.exit(main())
