"""Champions as phase 2 hands them over: weights with a configuration and metadata beside them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from distforge.errors import InputError

MINIMUM_IMPROVEMENT = 0.20

Loaded = tuple[PreTrainedModel, str, dict[str, Any]]


def read_pair(path: Path) -> Loaded:
    """Model, tokenizer directory and metadata of ``X.safetensors`` beside ``X.json``.

    The JSON is ``{"config": …, "tokenizer": directory, "metadata": …}``: a transformers
    configuration with its model_type, the tokenizer's directory relative to the file, and what
    phase 2 says of the champion. Raises `InputError` naming the file that is wrong.
    """
    described = path.with_suffix(".json")
    try:
        description = json.loads(described.read_text())
    except FileNotFoundError:
        raise InputError(f"{described} is missing; expected it beside {path.name}") from None
    except ValueError as error:
        raise InputError(f"{described} is not valid JSON ({error})") from error
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error
    return _assemble(path, weights, description)


def read_pickle(path: Path) -> Loaded:
    """The same from a legacy ``.pt``: ``{"state_dict": …, "config": …, "tokenizer": …, …}``.

    Only plain tensors and containers are read (``weights_only``); a pickle that wants anything else
    is refused before it can do it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is a pickle that holds more than plain tensors and is not opened; save the "
            "weights as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable checkpoint ({error})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise InputError(f"{path} has no 'state_dict'; expected it with 'config' and 'tokenizer'")
    return _assemble(path, dict(content["state_dict"]), content)


def _assemble(path: Path, weights: dict[str, Tensor], description: Any) -> Loaded:
    config = description.get("config") if isinstance(description, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{path}: no 'config' with a model_type; expected transformers' config")
    metadata = dict(description.get("metadata") or {})
    check_metadata(metadata, path)
    values = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    try:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **values)
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: its config does not describe a causal LM ({error})") from error
    _load_weights(path, model, weights)
    return model, str(_tokenizer_directory(path, description.get("tokenizer", "."))), metadata


def _load_weights(path: Path, model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path}: weights of another shape than its config's ({error})") from error
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    wrong = [name for name in (*missing, *unexpected) if name not in tied]
    if wrong:
        raise InputError(
            f"{path}: weights missing or unknown to its config: {', '.join(wrong[:3])}"
            f"{' and others' if len(wrong) > 3 else ''}"
        )


def _tokenizer_directory(path: Path, name: Any) -> Path:
    root = path.parent.resolve()
    directory = (root / str(name)).resolve()
    if not directory.is_relative_to(root):
        raise InputError(f"{path}: its tokenizer {name!r} lies outside {path.parent}")
    if not directory.is_dir():
        raise InputError(f"{path}: its tokenizer directory {name!r} does not exist")
    return directory


def check_metadata(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse metadata that says this is not phase 2's chosen champion; none at all is accepted."""
    if not metadata:
        return
    missing = []
    if metadata.get("phase") != 2:
        missing.append(f"phase is {metadata.get('phase')!r}, not 2")
    if metadata.get("champion_selected") is not True:
        missing.append("champion_selected is not true")
    gain = metadata.get("fitness_improvement")
    if isinstance(gain, bool) or not isinstance(gain, int | float) or gain < MINIMUM_IMPROVEMENT:
        missing.append(f"fitness_improvement is {gain!r}, not at least {MINIMUM_IMPROVEMENT}")
    if missing:
        raise InputError(f"{path} is not a champion of phase 2: {'; '.join(missing)}")
