"""A run from its directory to its end: claimed, logged, recorded, and gone if it was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distforge.config import config_sha256, dump_toml, to_dict
from distforge.errors import InputError
from distforge.registry import RegistryConfig
from distforge.telemetry import RunLogger, TelemetryConfig
from distforge.training.distributed import World
from distforge.training.run_directory import Existing, claim_run_directory
from distforge.training.run_record import RunRecord

_PHASE = 3


class RunConfig(Protocol):
    """What a run's configuration says of the run itself."""

    @property
    def name(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def existing(self) -> Existing: ...
    @property
    def telemetry(self) -> TelemetryConfig: ...
    @property
    def registry(self) -> RegistryConfig: ...


@dataclass(frozen=True)
class Run:
    """A run that is under way."""

    directory: Path
    log: RunLogger
    record: RunRecord


@contextmanager
def open_run(
    config: RunConfig,
    step: int,
    not_identity: Sequence[str],
    world: World,
    *,
    auto_resume: bool = False,
) -> Iterator[Run]:
    """The directory, logger and record of a run, closed at its end; collective.

    Args:
        config: the whole configuration; a frozen dataclass.
        step: of phase 3.
        not_identity: keys of the configuration in which two runs may differ and be the same run.
        auto_resume: see `claim_run_directory`.

    Raises:
        InputError: see `claim_run_directory`. One that is raised inside removes a directory that
            was made for the run, and goes on.
    """
    identity = config_sha256(config, exclude=not_identity)
    claim = claim_run_directory(
        config.output,
        config.name,
        dump_toml(config),
        identity,
        config.existing,
        world,
        auto_resume=auto_resume,
    )
    try:
        with (
            RunLogger(
                claim.path, config.telemetry, to_dict(config), config.name, enabled=world.is_main
            ) as log,
            RunRecord(config.registry, claim.path, _PHASE, step, world) as record,
        ):
            yield Run(claim.path, log, record)
    except InputError:
        claim.release(world)
        raise
