"""``distforge trust``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from distforge.errors import InputError
from distforge.training.checkpoint import trust_checkpoints
from distforge.training.keeping import CHECKPOINTS_DIRECTORY


@dataclass(frozen=True)
class TrustConfig:
    """Sign a run's checkpoints as they are, so that it resumes from them.

    For a run that an older version began, or that was copied without its checkpoints.key. You vouch
    for whoever could write to the directory; damaged checkpoints are left as they are.

    run: the run's directory, or that of a champion that is being made.
    """

    run: tyro.conf.Positional[Path]


def trust(config: TrustConfig) -> int:
    """Sign them, and say which."""
    root = config.run / CHECKPOINTS_DIRECTORY
    if not root.is_dir():
        raise InputError(f"{config.run} holds no {root.name}; give the directory of a run")
    for directory, fault in trust_checkpoints(root):
        print(f"{directory}: {f'not signed: {fault}' if fault else 'signed'}")
    return 0
