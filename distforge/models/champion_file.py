"""A champion in a file, as phase 2 writes it: weights, and beside them config and metadata."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distforge.errors import InputError, explain_file_error, first_line

MINIMUM_IMPROVEMENT = 0.20
"""Fraction by which phase 2's champion must be fitter than where it started."""

_PHASE2_KEYS = frozenset({"phase", "champion_selected", "fitness_improvement"})
_WEIGHT_KEYS = ("state_dict", "model_state_dict")


@dataclass(frozen=True)
class ChampionParts:
    """The parts of a handed-over champion, checked for form; no model is built yet.

    ``config`` is a transformers configuration with its ``model_type``; ``tokenizer`` an existing
    directory at or below the file's own.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Path
    metadata: dict[str, Any]


def read_pair(path: Path) -> ChampionParts:
    """``X.safetensors`` with ``X.json`` beside it.

    The JSON is ``{"config": …, "tokenizer": directory, "metadata": …}``, the directory relative to
    the file and its own by default. Raises `InputError` naming the file that is wrong.
    """
    described = path.with_suffix(".json")
    if not described.is_file():
        if (path.parent / "config.json").is_file():
            raise InputError(f"{path} is the weights of a directory's model; give {path.parent}")
        raise InputError(
            f"{described} is missing; write it next to {path.name} as "
            '{"config": …, "tokenizer": …, "metadata": …}'
        )
    description = read_json(described)
    config, tokenizer, metadata = _describe(description, described)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = explain_file_error(error) or f"{first_line(error)}; copy or save it again"
        raise InputError(f"{path} is not a readable safetensors file: {reason}") from error
    return ChampionParts(config, weights, tokenizer, metadata)


def read_pickle(path: Path) -> ChampionParts:
    """A legacy ``.pt``: ``{"state_dict": …, "config": …, "tokenizer": …, "metadata": …}``.

    The weights may be called ``model_state_dict`` as well. Only plain tensors and containers are
    read (``weights_only``); a pickle that wants anything else is refused with `InputError` before
    any of it runs.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text explains how to open it all the same
        raise InputError(
            f"{path} is not a pickle of plain tensors alone and is not opened; save the weights as "
            ".safetensors with a .json next to it"
        ) from error
    except Exception as error:  # the unpickler meets arbitrary bytes: any type can come of it
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); copy or save it again"
        ) from error
    config, tokenizer, metadata = _describe(content, path)
    weights = next((content[key] for key in _WEIGHT_KEYS if key in content), None)
    if not isinstance(weights, Mapping) or not weights:
        raise InputError(f"{path} has no 'state_dict'; save the weights under that key")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: {name!r} in its state_dict is a {type(value).__name__}; save named "
                "tensors alone there"
            )
    return ChampionParts(config, dict(weights), tokenizer, metadata)


READERS = {".safetensors": read_pair, ".pt": read_pickle, ".pth": read_pickle}
"""What reads a champion's file, by the end of its name."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `InputError` with the file's name for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON: {first_line(error)}; fix it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def check_metadata(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse metadata that is not of phase 2's chosen champion, with all that is wrong.

    It must have ``phase`` 2, ``champion_selected`` true and ``fitness_improvement`` at least 0.20
    (a fraction). Metadata with none of the three is not phase 2's and is accepted.
    """
    if _PHASE2_KEYS.isdisjoint(metadata):
        return
    wrong = []
    if metadata.get("phase") != 2:
        wrong.append(f"phase is {metadata.get('phase')!r}, not 2")
    if metadata.get("champion_selected") is not True:
        wrong.append(f"champion_selected is {metadata.get('champion_selected')!r}, not true")
    gain = metadata.get("fitness_improvement")
    if isinstance(gain, bool) or not isinstance(gain, int | float):
        gain_is_enough = False
    else:
        gain_is_enough = gain >= MINIMUM_IMPROVEMENT
    if not gain_is_enough:
        wrong.append(f"fitness_improvement is {gain!r}, not at least {MINIMUM_IMPROVEMENT:.2f}")
    if wrong:
        raise InputError(
            f"{path} is not a champion of phase 2: {'; '.join(wrong)}; hand over the champion that "
            "phase 2 selected"
        )


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a transformers configuration that asks for code from elsewhere.

    transformers runs a kernel of the hub when an ``attn_implementation`` (or another) names one.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_config(value, path)
        named = value.values() if isinstance(value, Mapping) else (value,)
        if key.endswith("_implementation") and any(re.search("[/:@]", str(v)) for v in named):
            raise InputError(
                f"{path}: {key} is {value!r}, which names code on the hub; remove it, or name "
                "one of transformers' own such as 'sdpa'"
            )


def _describe(description: Any, path: Path) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    config = description.get("config") if isinstance(description, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path} has no 'config' with a model_type; expected a transformers configuration there"
        )
    check_config(config, path)
    metadata = description.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InputError(f"{path}: its metadata is a {type(metadata).__name__}; expected a table")
    check_metadata(metadata, path)
    tokenizer = _tokenizer_directory(description.get("tokenizer", "."), path)
    return dict(config), tokenizer, dict(metadata)


def _tokenizer_directory(name: Any, path: Path) -> Path:
    root = path.parent.resolve()
    if not isinstance(name, str) or "\0" in name:
        raise InputError(f"{path}: its tokenizer is {name!r}; expected the name of a directory")
    directory = (root / name).resolve()
    if not directory.is_relative_to(root):
        raise InputError(
            f"{path}: its tokenizer {name!r} is outside {path.parent}; copy it there and name it "
            "relative to the file"
        )
    if not directory.is_dir():
        raise InputError(
            f"{path}: its tokenizer directory {name!r} does not exist; save the tokenizer there "
            "with tokenizer.save_pretrained"
        )
    return directory
