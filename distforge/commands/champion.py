"""``distforge champion make|import``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge import durable
from distforge.champion.make import RECORD_FILE, ChampionConfig, ensure_champion
from distforge.errors import InputError, require_choice
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.models.storage import LoadDtype, remember_dtype, storage_dtype
from distforge.models.weight_files import files_sha256
from distforge.registry.manifest import write_manifest
from distforge.training.distributed import entered_world
from distforge.training.engine_config import EngineConfig

# What `--help` shows; `--help-all` shows every setting.
MATTER = {
    "champion make": (
        "champion.path",
        "champion.recipe.vocab_size",
        "champion.recipe.num_examples",
        "champion.recipe.prompted_fraction",
        "champion.recipe.seed",
        "champion.recipe.architecture.hidden_size",
        "champion.recipe.architecture.num_layers",
        "champion.recipe.architecture.num_heads",
        "champion.recipe.training.max_steps",
        "champion.recipe.training.batch_size",
        "champion.recipe.optimizer.muon_grokfast.muon_lr",
        "max_length",
    )
}


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
    """Turn a model of any supported form into a Hugging Face directory that every command takes.

    source: a ``.gguf`` file, a directory, a ``.safetensors`` next to its ``.json``, a legacy
        ``.pt``, or ``hf://NAME``.
    output: directory to write; it must not exist. By default ``champions/`` and the source's name.
    dtype: of the written weights. "auto" is the source's own; bfloat16 of a quantized GGUF file.
    """

    source: tyro.conf.Positional[str]
    output: Path | None = None
    dtype: LoadDtype = "auto"

    def __post_init__(self) -> None:
        require_choice("dtype", self.dtype, get_args(LoadDtype))


def make(config: MakeConfig) -> int:
    """Make the champion, or say that it is there already."""
    champion = replace(config.champion, make=True)  # that is what the command is for
    with entered_world() as world:
        made = ensure_champion(champion, config.engine, config.max_length, world)
    if world.is_main:
        how = "made" if made else "exists already, made with the same settings"
        print(f"{config.champion.path}: {how}")
    return 0


def import_(config: ImportConfig) -> int:
    """Load, check, export, and note beside the weights where they came from."""
    output = config.output or Path("champions", _stem(config.source))
    if output.exists():
        raise InputError(f"{output} exists; give another --output")
    model, tokenizer, origin = _read(config.source, config.dtype)
    export_model(model, tokenizer, output)
    dtype = str(storage_dtype(model)).removeprefix("torch.")
    durable.write_json(output / RECORD_FILE, {**origin, "dtype": dtype})
    write_manifest(output)
    size = model.num_parameters()
    print(f"{config.source}: {size:,} parameters written to {output} in {dtype}")
    return 0


def _read(
    source: str, dtype: LoadDtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model, to be stored in ``dtype``, and what is known of where it came from."""
    path = Path(source).expanduser()
    name: dict[str, Any] = {"source": path.name if path.exists() else source}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{path} does not exist; give a .gguf file")
        # Its package is an extra of its own.
        from distforge.models.gguf_file import read_gguf

        read = read_gguf(path, dtype)
        return (
            read.model,
            read.tokenizer,
            name | {"sha256": files_sha256([path])} | read.description,
        )
    champion = load_champion(source)
    if dtype != "auto":
        remember_dtype(champion.model, getattr(torch, dtype))
    origin = name | {"sha256": champion.sha256, "metadata": champion.metadata}
    return champion.model, champion.tokenizer, origin


def _stem(source: str) -> str:
    path = Path(source)
    return path.name.removesuffix(path.suffix) if path.is_file() else path.name
