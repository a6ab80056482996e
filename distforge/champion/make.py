"""The champion that step 1 starts from: found, or made once and kept."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from distforge import durable
from distforge.champion.pretraining import MODEL_DIRECTORY, ChampionRecipe, make_champion
from distforge.config import config_sha256
from distforge.errors import InputError
from distforge.registry.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from distforge.telemetry import RunConsole
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig

RECORD_FILE = "champion.json"
_RECIPE_FILE = "recipe.sha256"


@dataclass(frozen=True)
class ChampionConfig:
    """The model that step 1 starts from.

    path: a Hugging Face directory, ``hf://NAME`` for one of the hub, a ``.safetensors`` beside its
        ``.json``, or a legacy ``.pt``.
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
        InputError: see `is_made`.
        RunStopped: SIGTERM or SIGINT came; a checkpoint is saved, and the same call continues.
    """
    if not config.make:
        return False
    path, recipe = Path(config.path), config_sha256(config.recipe)
    partial = unfinished(path)
    if _agreed(config, world):
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            if not (path / MANIFEST_NAME).exists():  # made before champions had one
                write_manifest(path)
        return False
    if world.is_main:
        _begin(partial, recipe)
    world.barrier()
    began = time.monotonic()
    console = RunConsole(console=Console(quiet=not world.is_main))
    make_champion(config.recipe, engine_config, max_length, partial, world, console)
    if world.is_main:
        model = partial / MODEL_DIRECTORY
        record = {"recipe_sha256": recipe, "seconds": round(time.monotonic() - began, 1)}
        durable.write_json(model / RECORD_FILE, record)
        write_manifest(model)
        durable.publish_directory(model, path)
        shutil.rmtree(partial)
    world.barrier()
    return True


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
            f"{path} exists and was not made here; set champion.make = false to use it as it is"
        )
    if json.loads(record.read_text(encoding="utf-8")).get("recipe_sha256") != config_sha256(
        config.recipe
    ):
        raise InputError(
            f"{path} holds a champion made by another recipe; give another champion.path, or "
            "remove it to have it made anew"
        )
    if (path / MANIFEST_NAME).exists():
        verify_manifest(path)
    return True


def unfinished(path: Path) -> Path:
    """Where a champion that will be ``path`` lies while it is made."""
    return path.with_name(f"{path.name}.partial")


def _agreed(config: ChampionConfig, world: World) -> bool:
    """`is_made` as rank 0 sees it, on every rank."""
    made, fault = False, ""
    if world.is_main:
        try:
            made = is_made(config)
        except InputError as error:
            fault = str(error)
    made, fault = world.broadcast_object([made, fault])
    if fault:
        raise InputError(fault)
    return bool(made)


def _begin(partial: Path, recipe: str) -> None:
    """Leave in ``partial`` what this recipe can be continued from, and nothing else."""
    mark = partial / _RECIPE_FILE
    if partial.exists() and not (
        mark.is_file() and mark.read_text(encoding="utf-8").strip() == recipe
    ):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial / MODEL_DIRECTORY, ignore_errors=True)
    durable.write_text(mark, recipe + "\n")
