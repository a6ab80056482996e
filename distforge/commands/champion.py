"""``distforge champion make|import``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distforge.champion.make import ChampionConfig, ensure_champion
from distforge.errors import InputError
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.training.distributed import entered_world
from distforge.training.engine_config import EngineConfig


@dataclass(frozen=True)
class MakeConfig:
    """Make the embedded champion by its recipe (see configs/ for the 1.3M and the 25M one).

    champion: where to, and the recipe. An existing champion of the same recipe is kept.
    max_length: longest text in tokens.
    """

    champion: ChampionConfig = field(default_factory=ChampionConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_length: int = 512


@dataclass(frozen=True)
class ImportConfig:
    """Turn a champion of any supported form into a Hugging Face directory.

    source: a directory, a ``.safetensors`` beside its ``.json``, a legacy ``.pt``, or ``hf://NAME``.
    output: directory to write; it must not exist.
    """

    source: str
    output: Path


def make(config: MakeConfig) -> int:
    """Make the champion, or say that it is there already."""
    with entered_world() as world:
        made = ensure_champion(config.champion, config.engine, config.max_length, world)
    if world.is_main:
        print(f"{config.champion.path}: {'made' if made else 'was there already, made alike'}")
    return 0


def import_(config: ImportConfig) -> int:
    """Load, check and export."""
    if config.output.exists():
        raise InputError(f"{config.output} exists; give another --output")
    champion = load_champion(config.source)
    export_model(champion.model, champion.tokenizer, config.output)
    size = sum(p.numel() for p in champion.model.parameters())
    print(f"{config.source}: {size:,} parameters written to {config.output}")
    return 0
