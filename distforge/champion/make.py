"""The champion that step 1 starts from: found, or made once and kept."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from distforge import durable
from distforge.champion.pretraining import MODEL_DIRECTORY, ChampionRecipe, make_champion
from distforge.config import config_sha256
from distforge.errors import InputError
from distforge.locks import Held
from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.telemetry import RunConsole
from distforge.training.distributed import World, on_main
from distforge.training.engine_config import EngineConfig
from distforge.training.node_disks import copy_to_all
from distforge.training.previous import forget, previous, set_aside
from distforge.training.run_directory import holding, locked

RECORD_FILE = "champion.json"
_RECIPE_FILE = "recipe.sha256"


@dataclass(frozen=True)
class ChampionConfig:
    """The model that step 1 starts from.

    path: a Hugging Face directory, or a run's, ``hf://NAME`` for one of the hub, a
        ``.safetensors`` next to its ``.json``, or a legacy ``.pt``.
    make: make the embedded champion at ``path`` by ``recipe`` when nothing is there; a champion
        made before is used again.
    """

    path: str = "champions/embedded"
    make: bool = False
    recipe: ChampionRecipe = field(default_factory=ChampionRecipe)

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("champion.path is empty; name a directory, a file or hf://NAME")


def ensure_champion(
    config: ChampionConfig,
    engine_config: EngineConfig,
    max_length: int,
    world: World,
) -> bool:
    """Make the champion if it is to be made and is not there yet; whether it was made; collective.

    What a killed process had made of it, by the same recipe, is continued.

    Raises:
        InputError: see `is_made`; or another process makes it, or has begun to by another recipe.
        RunStopped: SIGTERM or SIGINT came; a checkpoint is saved, and the same call continues.
    """
    if not config.make:
        return False
    path = Path(config.path)
    if on_main(world, lambda: _is_made_and_tidy(config)):
        if not all(world.gather_objects(path.exists())):
            copy_to_all(path, world)
        return False
    with holding(path, world, f"the champion {path}"):
        if on_main(world, lambda: is_made(config)):  # by another process, meanwhile
            return False
        _make(config, engine_config, max_length, world)
        copy_to_all(path, world)
    return True


def _make(
    config: ChampionConfig, engine_config: EngineConfig, max_length: int, world: World
) -> None:
    path, recipe = Path(config.path), config_sha256(config.recipe)
    partial = unfinished(path)
    on_main(world, lambda: _begin(partial, recipe))
    began = time.monotonic()
    console = RunConsole(console=Console(quiet=not world.is_main))
    make_champion(config.recipe, engine_config, max_length, partial, world, console)
    if world.is_main:
        model = partial / MODEL_DIRECTORY
        record = {"recipe_sha256": recipe, "seconds": round(time.monotonic() - began, 1)}
        durable.write_json(model / RECORD_FILE, record)
        write_manifest(model)
        durable.publish_directory(model, path)
        durable.remove_directory(partial)
        forget(path)
    world.barrier()


def is_made(config: ChampionConfig) -> bool:
    """Whether the champion is there, made by this recipe and with every byte as it was made.

    One from before champions had a manifest is taken as it is.

    Raises:
        InputError: what lies at ``path`` was not made here, was made by another recipe, or has
            been changed.
    """
    path = Path(config.path)
    if not path.exists():
        return False
    record = path / RECORD_FILE
    if not record.is_file():
        raise InputError(
            f"{path} exists and was not made here; set champion.make = false to use it unchanged"
        )
    if json.loads(record.read_text(encoding="utf-8")).get("recipe_sha256") != config_sha256(
        config.recipe
    ):
        raise InputError(
            f"{path} holds a champion made by another recipe; give another champion.path, or "
            "remove it and it is made again"
        )
    if (path / MANIFEST_NAME).exists():
        verify_manifest(path)
    return True


def unfinished(path: Path) -> Path:
    """Where a champion that will be ``path`` lies while it is made."""
    return path.with_name(f"{path.name}.partial")


def remove_champion(path: Path) -> None:
    """Make room for a new champion, and remove what was begun of one.

    One that is whole is kept, hidden, until the new one is.
    """
    with locked(path, f"the champion {path}"):
        if unfinished(path).exists():
            durable.remove_directory(unfinished(path))
        set_aside(path, Path.exists)


def _is_made_and_tidy(config: ChampionConfig) -> bool:
    """`is_made`; what its making left beside it is removed, unless another process is at that."""
    if not is_made(config):
        return False
    path = Path(config.path)
    partial = unfinished(path)
    if partial.exists() or previous(path).exists():
        with suppress(Held), locked(path):
            shutil.rmtree(partial, ignore_errors=True)
            forget(path)
    if not (path / MANIFEST_NAME).exists():  # made before champions had one
        write_manifest(path)
    return True


def _begin(partial: Path, recipe: str) -> None:
    """Leave in ``partial`` what this recipe can be continued from, and nothing else."""
    mark = partial / _RECIPE_FILE
    if mark.is_file() and mark.read_text("utf-8").strip() != recipe:
        raise InputError(
            f"{partial} holds the beginnings of a champion of another recipe; give another "
            "champion.path, or remove it if it is no longer needed"
        )
    partial.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial / MODEL_DIRECTORY, ignore_errors=True)
    durable.write_text(mark, recipe + "\n")
