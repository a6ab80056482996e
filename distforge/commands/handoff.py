"""``distforge handoff check``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from distforge.errors import InputError
from distforge.handoff.from_phase2 import find_champion_faults
from distforge.handoff.statement import MeasuredOn, read_statement
from distforge.handoff.to_phase4 import find_faults
from distforge.models.weight_files import model_directory
from distforge.registry.manifest import manifest_id

_REFUSED = 3


@dataclass(frozen=True)
class CheckConfig:
    """Whether a model may go to the next phase, with all that is missing. Exit status 3 if not.

    path: the model: a directory, or a run's, or phase 2's .safetensors or .pt.
    receiver: the phase that takes it. "3" is a champion of phase 2; "4" a model of this phase, with
        its verdict; "auto" is 4 for a directory and 3 for a file.
    """

    path: tyro.conf.Positional[Path]
    receiver: Literal["auto", "3", "4"] = "auto"


def check(config: CheckConfig) -> int:
    """Print all the faults; where there are none, what phase 4 is told."""
    try:
        path = model_directory(config.path)
        exists, is_directory = path.exists(), path.is_dir()
    except OSError as error:
        raise InputError(
            f"{config.path} cannot be looked at ({error.strerror}); give the right to read it"
        ) from error
    if not exists:
        raise InputError(f"{config.path} does not exist; give a model's directory or file")
    receiver = config.receiver
    if receiver == "auto":
        receiver = "4" if is_directory else "3"
    faults = (find_faults if receiver == "4" else find_champion_faults)(path)
    for fault in faults:
        print(f"missing: {fault}")
    if receiver == "4" and not faults:
        print(_describe(path))
    print(f"{path}: {'REFUSED by' if faults else 'ready for'} phase {receiver}")
    return _REFUSED if faults else 0


def _describe(directory: Path) -> str:
    stated = read_statement(directory)
    low, high = stated.gain_interval or (math.nan, math.nan)
    unit = {"text": "bits a token", "reward": "reward"}.get(stated.task, "of the questions")
    lines = [
        f"baked accuracy  {_percent(stated.baked_accuracy)} {_on(stated.baked_measured_on)}",
        f"after step 2    {_percent(stated.accuracy)} {_on(stated.measured_on)}, before it "
        f"{_percent(stated.before_accuracy)}",
        f"gain            {stated.gain:+.4f} {unit} [{low:+.4f}, {high:+.4f}]",
    ]
    if stated.theater is not None:
        lines.append(
            f"verdict         {stated.verdict} on {stated.theater.items} items with "
            f"{stated.theater.thoughts} thoughts"
        )
        lines += [
            f"  {name:22}{_number(measure.estimate)} [{_number(measure.low)}, "
            f"{_number(measure.high)}] > {measure.threshold:g}"
            for name, measure in stated.theater.measures.items()
        ]
    tokens = " ".join(f"{token}={index}" for token, index in stated.thinking_tokens.items())
    lines += [f"tokens          {tokens}", f"manifest        {manifest_id(directory)}"]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4f}"


def _on(measured: MeasuredOn | None) -> str:
    if measured is None:
        return "as it was stated"
    return f"on {measured.n} held-out questions (data {measured.dataset_sha256[:12]})"
