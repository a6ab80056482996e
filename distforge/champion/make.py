"""The champion that step 1 starts from: found, or made once and kept."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from distforge import durable
from distforge.champion.pretraining import ChampionRecipe, make_champion
from distforge.config import config_sha256
from distforge.errors import InputError
from distforge.telemetry import RunConsole
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig

RECORD_FILE = "champion.json"


@dataclass(frozen=True)
class ChampionConfig:
    """The model that step 1 starts from.

    path: a Hugging Face directory or hub name, a ``.safetensors`` beside its ``.json``, or a legacy
        ``.pt``.
    make: make the embedded champion at ``path`` by ``recipe`` when nothing is there; a champion
        made before is used again.
    """

    path: str = "champions/embedded"
    make: bool = False
    recipe: ChampionRecipe = field(default_factory=ChampionRecipe)

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("champion.path is empty; name a directory, a file or a hub model")


def ensure_champion(
    config: ChampionConfig,
    engine_config: EngineConfig,
    max_length: int,
    world: World,
) -> bool:
    """Make the champion if it is to be made and is not there yet; whether it was made; collective.

    Raises:
        InputError: what lies at ``path`` was made by another recipe.
    """
    if not config.make:
        return False
    path = Path(config.path)
    recipe = config_sha256(config.recipe)
    fault = world.broadcast_object(_fault(path, recipe) if world.is_main else "")
    if fault:
        raise InputError(fault)
    if world.broadcast_object(path.exists()):
        return False
    partial = path.with_name(f"{path.name}.partial")
    if world.is_main and partial.exists():
        shutil.rmtree(partial)
    began = time.monotonic()
    console = RunConsole(console=Console(quiet=not world.is_main))
    make_champion(config.recipe, engine_config, max_length, partial, world, console)
    if world.is_main:
        record = {"recipe_sha256": recipe, "seconds": round(time.monotonic() - began, 1)}
        durable.write_json(partial / RECORD_FILE, record)
        durable.publish_directory(partial, path)
    world.barrier()
    return True


def _fault(path: Path, recipe: str) -> str:
    if not path.exists():
        return ""
    record = path / RECORD_FILE
    if not record.is_file():
        return f"{path} exists and was not made here; set champion.make = false to use it as it is"
    if json.loads(record.read_text()).get("recipe_sha256") != recipe:
        return (
            f"{path} holds a champion made by another recipe; give another champion.path, or "
            "remove it to have it made anew"
        )
    return ""
