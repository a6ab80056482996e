"""The command line: ``distforge COMMAND [--config FILE.toml] [--section.key value …]``.

Every command is a function of one configuration. Exit status: 0 success, 2 bad input, 3 a run that
ended without meeting its goal, 75 a run that was told to stop and can be resumed, 141 nobody reads
what it prints any more.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distforge.activity import doing, watched
from distforge.errors import InputError, RunStopped, explain_file_error
from distforge.extras import MissingExtra
from distforge.training.outcome import STATUS, Outcome, tell_launcher

OK, BAD_INPUT = STATUS["met"], STATUS["refused"]
GOAL_MISSED, STOPPED = STATUS["missed"], STATUS["stopped"]
HELP = ("-h", "--help")
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
    "report": Command("report", "report", "ReportConfig", "a run's report anew, or all runs'"),
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
    "data check": Command("data", "check", "CheckConfig", "verify every row, look for leaks"),
    "data show": Command("data", "show", "ShowConfig", "print examples"),
    "evaluate": Command("evaluate", "evaluate", "EvaluateConfig", "ask a model held-out questions"),
    "judge": Command(
        "judge", "judge", "JudgeConfig", "whether a model's thoughts do the work: the verdict"
    ),
    "optim explain": Command(
        "optim", "explain", "ExplainConfig", "which parameters Muon trains, which AdamW, and why"
    ),
    "registry serve": Command("registry", "serve", "ServeConfig", "start the central registry"),
    "registry list": Command("registry", "list_", "ListConfig", "registered models, or sessions"),
    "registry show": Command("registry", "show", "ShowConfig", "one version; --download copies it"),
    "registry promote": Command("registry", "promote", "PromoteConfig", "point an alias at one"),
    "registry lineage": Command("registry", "lineage", "LineageConfig", "its history, both ways"),
    "registry verify": Command("registry", "verify", "VerifyConfig", "every file's sha256"),
    "registry relocate": Command("registry", "relocate", "RelocateConfig", "after files moved"),
    "registry gc": Command("registry", "gc", "GcConfig", "remove old versions"),
    "handoff check": Command(
        "handoff", "check", "CheckConfig", "whether a model may go to the next phase"
    ),
    "trust": Command(
        "trust", "trust", "TrustConfig", "sign a run's checkpoints that came without their key"
    ),
    "bench": Command("bench", "bench", "BenchConfig", "the benchmarks in quick form, one table"),
    "doctor": Command("doctor", "doctor", "DoctorConfig", "versions, kernels, devices"),
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
        # Whoever read the output, `head` say, has read enough. What the interpreter flushes at its
        # end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except RunStopped as stop:
        print(f"told to stop: {stop}; start it again with --resume auto", file=sys.stderr)
        return STOPPED
    except Exception as error:
        explained = explain_file_error(error)
        if not explained:
            raise
        return _refuse(f"{explained}, and give the command again: what was saved is there")


def _refuse(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"error{'' if rank == '0' else f' (rank {rank})'}: {message}", file=sys.stderr)
    return BAD_INPUT


def _dispatch_and_tell(words: list[str]) -> int:
    """Whoever started this may turn the exit status into another one, so it is told."""
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
    if not words or words[0] in HELP:
        print(_usage(COMMANDS))
        return OK
    if words[0] == "--version":
        from distforge import __version__

        print(__version__)
        return OK
    group = {name: command for name, command in COMMANDS.items() if name.split()[0] == words[0]}
    if words[0] not in COMMANDS and group and words[1:2] and words[1] in HELP:
        print(_usage(group))
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
    from distforge.config import load_config

    command = COMMANDS[name]
    with doing("loading libraries"):
        module = importlib.import_module(f"distforge.commands.{command.module}")
    path, overrides = split_config(words)
    config = load_config(
        getattr(module, command.config),
        path,
        overrides,
        prog=f"distforge {name}",
        table=command.table,
        ignore=command.ignore,
    )
    return int(getattr(module, command.function)(config))


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
    close = difflib.get_close_matches(given, [*COMMANDS], n=1)
    if close:
        return f"unknown command {given!r}; did you mean {close[0]!r}?"
    if group:
        return f"unknown command {given!r}; expected {', '.join(group)}"
    return f"unknown command {given!r}; `distforge --help` lists them"


def _usage(commands: Mapping[str, Command]) -> str:
    lines = ["usage: distforge COMMAND [--config FILE.toml] [--section.key value ...]", ""]
    lines += [f"  {name:17} {command.help}" for name, command in commands.items()]
    return "\n".join([*lines, "", "distforge COMMAND --help lists the command's settings."])


if __name__ == "__main__":
    sys.exit(main())
