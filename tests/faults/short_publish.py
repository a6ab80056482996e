"""A publish to an embedded registry, as a run does it, and what the registry holds afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from distforge.cli import main
from distforge.registry import ModelRegistry, RegistryConfig
from distforge.registry.manifest import write_manifest
from distforge.registry.spool import Spool
from distforge.training.checkpoint import trust_checkpoints
from distforge.training.distributed import World
from distforge.training.run_record import REGISTRY_FILE, SPOOL_FILE, RunRecord
from tests.faults.registry_processes import make_model
from tests.faults.short_runs import NAME, Case, never
from tests.shared import build_once

_WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
_MODELS = (("champion", 2, 0), ("baked_reasoning", 3, 1))


def prepare(folder: Path) -> None:
    """A run's directory with a checkpoint and two models, and a registry that holds nothing yet."""
    folder.mkdir()
    run = folder / NAME
    for name, *_ in _MODELS:
        write_manifest(make_model(run / name, name))
    write_manifest(make_model(run / "checkpoints" / "step_2", "two"))
    trust_checkpoints(run / "checkpoints")
    shutil.copy(build_once("registry-made", _migrate) / REGISTRY_FILE, folder)


def _migrate(root: Path) -> None:
    ModelRegistry(root / REGISTRY_FILE)


def _models(folder: Path) -> list[dict[str, object]]:
    return [
        {
            "phase": phase,
            "step": step,
            "model_type": name,
            "model_path": folder / NAME / name,
            "metadata": {"metrics": {"accuracy_overall": 0.5}},
            "aliases": (f"{name.split('_')[0]}-latest",) if step else ("champion",),
        }
        for name, phase, step in _MODELS
    ]


def publish(folder: Path, wait_seconds: float = 1.0) -> int:
    """What a run tells the registry of itself; nothing of it may end the run."""
    config = RegistryConfig(wait_seconds=wait_seconds)
    with RunRecord(config, folder / NAME, 3, 1, _WORLD) as record:
        record.start()
        record.checkpoint(2, folder / NAME / "checkpoints" / "step_2")
        record.register(*_models(folder))
    return 0


def prepare_spool(folder: Path) -> None:
    """As `prepare`, with the models noted in a spool and not yet sent."""
    prepare(folder)
    key = ""
    for model in _models(folder):
        key = Spool(folder / SPOOL_FILE).register(**model, parent_key=key)  # type: ignore[arg-type]


def replay(folder: Path) -> int:
    """What sends later what is in the spool."""
    registry, spool = str(folder / REGISTRY_FILE), str(folder / SPOOL_FILE)
    return main(["registry", "list", "--uri", registry, "--spool", spool])


def publish_again(folder: Path) -> int:
    """What the run does where it is resumed, however busy the machine is."""
    return publish(folder, 60.0) or replay(folder)


def holds(folder: Path) -> object:
    """Versions with their parents and aliases, each verified; what is left in the spool."""
    registry = ModelRegistry(folder / REGISTRY_FILE)
    versions = {v.version: (v.parent, sorted(v.aliases)) for v in registry.find()}
    for version in versions:
        registry.verify(version)
    spool = Spool(folder / SPOOL_FILE)
    # A run whose directory neither gives nor takes a session's id is another one when it is
    # resumed, and the first one knows of no checkpoints where nothing could be read any more.
    sessions = {(tuple(sorted(found.checkpoints)), found.status) for found in registry.sessions()}
    whole = {session for session in sessions if session[0]} or sessions
    return versions, whole, spool.pending(), spool.failed()


PUBLISH = Case("publish", publish, replay, never, holds, prepare, (0,), anew=publish_again)
# What it tells the database, publishing does as well: there every call fails.
REPLAY = Case("replay", replay, replay, never, holds, prepare_spool, (0, 2), database_share=4)
