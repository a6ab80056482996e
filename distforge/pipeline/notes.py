"""What the pipeline notes while it runs, in the directory of step 1's run."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import socket
import sys
from contextlib import suppress

import torch

from distforge import __version__
from distforge.errors import InputError
from distforge.pipeline.config import PipelineConfig
from distforge.reports.pipeline_record import PipelineRecord, StageRecord
from distforge.training.distributed import World
from distforge.training.run_directory import withdraw

_PACKAGES = ("transformers", "deepspeed", "ray")


class Notes:
    """The record of one pipeline: as an earlier call left it, and brought up to date by this one.

    Only rank 0 writes; the other ranks know the same.

    Attributes:
        directory: step 1's run, which also holds the record and the report of the whole.
        record: as it stands.
    """

    def __init__(self, config: PipelineConfig, world: World) -> None:
        self._world = world
        self._directories = config.run_directories
        self.directory = self._directories[0]
        earlier = None
        if world.is_main:
            with suppress(InputError):  # notes that cannot be read are written anew
                earlier = PipelineRecord.read(self.directory)
        step2 = config.step2_config
        self.record = PipelineRecord(
            step1=config.name,
            step2=step2.name if step2 else "",
            champion=config.champion.path,
            stages=earlier.stages if earlier else {},
            settings=config.changed_settings,
            command=shlex.join(["distforge", *sys.argv[1:]]),
            host=socket.gethostname(),
            versions=_versions(),
            report=earlier.report if earlier else {},
        )

    def stage(self, name: str) -> StageRecord:
        """What is noted of a stage."""
        return self.record.stages.get(name, StageRecord())

    def note_stage(self, name: str, stage: StageRecord) -> None:
        """Note how far a stage is."""
        self._update(stages={**self.record.stages, name: stage})

    def note_report(self, hashes: dict[str, str]) -> None:
        """Note what the report was made from."""
        self._update(report=hashes)

    def withdraw(self) -> None:
        """Remove the directories again in which nothing was done: the run could not begin."""
        for directory in self._directories if self._world.is_main else ():
            withdraw(directory)

    def _update(self, **changes: object) -> None:
        self.record = self.record.model_copy(update=changes)
        if self._world.is_main:
            self.record.write(self.directory)


def _versions() -> dict[str, str]:
    versions = {
        "distforge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
