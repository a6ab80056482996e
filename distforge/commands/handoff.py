"""``distforge handoff check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from distforge.errors import InputError
from distforge.handoff.to_phase4 import find_champion_faults, find_faults

_REFUSED = 3


@dataclass(frozen=True)
class CheckConfig:
    """Whether a model may go to the next phase, with all that is missing. Exit status 3 if not.

    path: the model: a directory, or phase 2's .safetensors or .pt.
    receiver: the phase that takes it. "3" is a champion of phase 2; "4" a model of this phase, with
        its verdict; "auto" is 4 for a directory and 3 for a file.
    """

    path: tyro.conf.Positional[Path]
    receiver: Literal["auto", "3", "4"] = "auto"


def check(config: CheckConfig) -> int:
    """Print the faults, or that there are none."""
    if not config.path.exists():
        raise InputError(f"{config.path} does not exist; give a model's directory or file")
    receiver = config.receiver
    if receiver == "auto":
        receiver = "4" if config.path.is_dir() else "3"
    faults = (find_faults if receiver == "4" else find_champion_faults)(config.path)
    for fault in faults:
        print(f"missing: {fault}")
    print(f"{config.path}: {'REFUSED by' if faults else 'ready for'} phase {receiver}")
    return _REFUSED if faults else 0
