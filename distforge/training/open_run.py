"""A run from its directory to its end: held, claimed, logged, recorded, and how it ended.

A refused run leaves no directory, unless something was done in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from distforge.config import config_sha256, dump_toml, to_dict
from distforge.errors import InputError, require_name
from distforge.registry import RegistryConfig
from distforge.telemetry import RunLogger, TelemetryConfig
from distforge.training.distributed import World, on_main
from distforge.training.node_disks import copy_to_all
from distforge.training.outcome import OUTCOME_FILE, Outcome, works_on
from distforge.training.previous import forget
from distforge.training.run_directory import (
    SUMMARY_FILE,
    Existing,
    Resume,
    RunDirectory,
    claim_run_directory,
    holding,
    holds,
    is_finished,
)
from distforge.training.run_inputs import require_alike, require_unchanged
from distforge.training.run_record import RunRecord

_PHASE = 3
_FOR_THE_NEXT_STEP = (SUMMARY_FILE, "data")


class RunConfig(Protocol):
    """What a run's configuration says of the run itself."""

    @property
    def name(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def existing(self) -> Existing: ...
    @property
    def resume(self) -> Resume: ...
    @property
    def telemetry(self) -> TelemetryConfig: ...
    @property
    def registry(self) -> RegistryConfig: ...


@dataclass
class Run:
    """A run that is under way.

    Attributes:
        directory: its own.
        outcome: how it ended; "running" until `end`.
    """

    directory: Path
    log: RunLogger
    record: RunRecord
    _world: World
    _is_new: bool
    _force: bool
    outcome: Outcome = field(default=Outcome("running"))

    def start_from(self, **inputs: str) -> None:
        """What the run starts from, hashes by name; collective. See `require_unchanged`.

        Raises:
            InputError: the ranks differ, or the run started from something else.
        """
        named = {name.replace("_", " "): digest for name, digest in inputs.items()}
        require_unchanged(
            self.directory, named, self._world, is_new=self._is_new, force=self._force
        )

    def end(self, met: bool, missed: str = "") -> None:
        """The run has its result, and has met its goal or ``missed`` it, one sentence; collective.

        What the next step reads of it lies on every node then.
        """
        for name in _FOR_THE_NEXT_STEP:
            copy_to_all(self.directory / name, self._world)
        self.outcome = Outcome("met" if met else "missed", "" if met else missed)


@contextmanager
def open_run(
    config: RunConfig, step: int, not_identity: Sequence[str], world: World
) -> Iterator[Run]:
    """The directory, logger and record of a run, closed at its end; collective.

    Call `Run.start_from` before anything is made, and `Run.end` when all is.

    Args:
        config: the whole configuration; a frozen dataclass.
        step: of phase 3.
        not_identity: keys of the configuration in which two runs may differ and be the same run.

    Raises:
        InputError: see `claim_run_directory` and `holding`; or the ranks have not the same
            configuration.
    """
    require_name("the run's name", config.name)
    identity = config_sha256(config, exclude=not_identity)
    require_alike(world, {"configuration": identity})
    directory = Path(config.output) / config.name
    with holding(directory, world, is_again=config.resume != "off"):
        claim = claim_run_directory(
            config.output,
            config.name,
            dump_toml(config),
            identity,
            config.existing,
            world,
            config.resume,
        )
        works_on(directory)
        with (
            _noting_outcome(claim, world) as note,
            RunLogger(
                claim.path, config.telemetry, to_dict(config), config.name, enabled=world.is_main
            ) as log,
            RunRecord(config.registry, claim.path, _PHASE, step, world) as record,
        ):
            run = Run(claim.path, log, record, world, claim.is_new, config.resume == "force")
            yield run
            note.append(run.outcome)


def finished_run(config: RunConfig, not_identity: Sequence[str], world: World) -> Path | None:
    """With ``resume = "auto"``, the directory of this very run where that is finished; collective.

    Whoever starts a run again is told how it ended, and nothing is trained again.
    """
    directory = Path(config.output) / config.name
    identity = config_sha256(config, exclude=not_identity)

    def look() -> bool:
        return config.resume == "auto" and holds(directory, identity) and is_finished(directory)

    if not on_main(world, look):
        return None
    works_on(directory)
    copy_to_all(directory / SUMMARY_FILE, world)
    if world.is_main:
        print(f"{directory} is finished (see its {SUMMARY_FILE}): nothing is left to do")
    return directory


@contextmanager
def _noting_outcome(claim: RunDirectory, world: World) -> Iterator[list[Outcome]]:
    """Write how the run ended into its directory; what is put on the list, or the error.

    A run that was refused before anything was done leaves no directory instead; one that has ended
    with a result has no more need of what it replaced.
    """

    def write(outcome: Outcome) -> None:
        if world.is_main:
            outcome.write(claim.path / OUTCOME_FILE)

    write(Outcome("running"))
    ended: list[Outcome] = []
    try:
        yield ended
    except BaseException as error:
        write(Outcome.of_error(error))
        if isinstance(error, InputError):
            claim.release(world)
        raise
    write(ended[0])
    if world.is_main and is_finished(claim.path):
        forget(claim.path)
