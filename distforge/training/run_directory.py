"""A run's directory: claimed once, never shared by two runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distforge import durable
from distforge.errors import InputError, require_name
from distforge.training.distributed import World

Existing = Literal["resume", "replace"]


@dataclass(frozen=True)
class RunDirectory:
    """A claimed directory; ``is_new`` unless it held this run before."""

    path: Path
    is_new: bool

    def release(self, world: World) -> None:
        """Remove the directory again if this claim made it: the run could not begin."""
        if self.is_new and world.is_main:
            shutil.rmtree(self.path)


IDENTITY_FILE = "config.sha256"
# What the pipeline notes of a run; they may lie in a directory before the run claims it.
INPUTS_FILE, PIPELINE_FILE = "inputs.json", "pipeline.json"
CONFIG_FILE = "config.toml"
SUMMARY_FILE = "summary.json"


def claim_run_directory(
    output: str,
    name: str,
    config_toml: str,
    identity: str,
    existing: Existing,
    world: World,
    *,
    auto_resume: bool = False,
) -> RunDirectory:
    """Make or take over ``output/name`` for the run with this configuration; collective.

    Args:
        output, name: parent directory, and the run's name in [A-Za-z0-9._-].
        config_toml: the resolved configuration, written to config.toml.
        identity: hash of what makes two runs the same run.
        existing: what to do with a directory that holds this very run, see `Step1Config`.
        world: rank 0 writes, the others wait.
        auto_resume: continue this very run where it is unfinished, whatever ``existing`` says.

    Raises:
        InputError: a bad name, or a directory that holds something else, another run, or (with
            "resume") this run finished. Nothing is touched then.
    """
    require_name("the run's name", name)
    directory = Path(output) / name
    if auto_resume and world.broadcast_object(_is_unfinished(directory, identity)):
        existing = "resume"
    fault = _fault(directory, identity, existing) if world.is_main else ""
    fault = world.broadcast_object(fault)
    if fault:
        raise InputError(fault)
    is_new = not (directory / IDENTITY_FILE).exists() or existing == "replace"
    is_new = world.broadcast_object(is_new)
    if world.is_main:
        if existing == "replace" and directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        durable.write_text(directory / IDENTITY_FILE, identity + "\n")
        durable.write_text(directory / CONFIG_FILE, config_toml)
    world.barrier()
    return RunDirectory(directory, is_new)


def is_unclaimed(directory: Path) -> bool:
    """Whether nothing lies in a directory but what is written before a run claims it."""
    notes = [directory / name for name in (INPUTS_FILE, PIPELINE_FILE)]
    marker = durable.temporary(directory / IDENTITY_FILE)
    known = {marker, *notes, *map(durable.temporary, notes)}
    return directory.is_dir() and set(directory.iterdir()) <= known


def _is_unfinished(directory: Path, identity: str) -> bool:
    marker = directory / IDENTITY_FILE
    known = marker.is_file() and marker.read_text(encoding="utf-8").strip() == identity
    return known and not (directory / SUMMARY_FILE).exists()


def _fault(directory: Path, identity: str, existing: Existing) -> str:
    """Why the directory cannot be taken, or an empty string."""
    elsewhere = "give another --name or --output"
    marker = directory / IDENTITY_FILE
    if not directory.exists() or is_unclaimed(directory):
        return ""
    if not directory.is_dir() or not marker.is_file():
        return f"{directory} exists and is not a run of distforge; {elsewhere}"
    if marker.read_text(encoding="utf-8").strip() != identity:
        return (
            f"{directory} holds another run (see its {CONFIG_FILE}); {elsewhere}, or remove it "
            "if it is no longer needed"
        )
    if existing == "resume" and (directory / SUMMARY_FILE).exists():
        return (
            f"{directory} holds this run, finished (see its {SUMMARY_FILE}); {elsewhere}, or start "
            "it over with --existing replace"
        )
    return ""
