"""A model without its weights: names, shapes and ties, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from distforge.errors import InputError, first_line
from distforge.models.champion_file import READERS, check_config, read_json
from distforge.models.loading import fetch_from_hub
from distforge.models.quiet import quiet_transformers
from distforge.models.weight_files import model_directory, no_model


def load_skeleton(source: str) -> PreTrainedModel:
    """The causal language model that a configuration describes, fp32 on the meta device.

    Args:
        source: see `load_config`.

    Raises:
        InputError: nothing there, or no configuration of a causal language model of this
            transformers.
    """
    described = load_config(source)
    with _described_by(source), quiet_transformers(), torch.device("meta"):
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(described)]
        # The public from_config would import a flash-attention kernel where the file names one.
        described._attn_implementation = "eager"
        model: PreTrainedModel = model_class._from_config(described, dtype=torch.float32)
    # On the meta device nothing is loaded, so nothing has tied the weights yet.
    model.tie_weights()
    return model


def load_config(source: str) -> PreTrainedConfig:
    """The configuration of a causal language model; no weights of a directory are read.

    Args:
        source: a directory with ``config.json`` (weights are not needed), or a run's, such a JSON
            file itself, a ``.safetensors`` next to its ``.json``, a legacy ``.pt``, or
            ``hf://NAME``, of which only ``config.json`` is fetched.

    Raises:
        InputError: nothing there, or no configuration that this transformers knows.
    """
    config = _read_config(source)
    values = {k: v for k, v in config.items() if k not in ("model_type", "auto_map")}
    with _described_by(source):
        found: PreTrainedConfig = AutoConfig.for_model(config["model_type"], **values)
    return found


@contextmanager
def _described_by(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # configurations validate themselves with many types
        reason = first_line(error)
        raise InputError(
            f"the config of {source!r} does not describe a causal language model of this "
            f"transformers: {type(error).__name__}: {reason}; give one with a known model_type"
        ) from error


def _read_config(source: str) -> dict[str, Any]:
    path = model_directory(source)
    if path.is_file() and path.suffix in READERS:
        return READERS[path.suffix](path).config
    if not path.is_file():
        directory = path if path.is_dir() else fetch_from_hub(source, ["config.json"])
        path = directory / "config.json"
        if not path.is_file():
            raise no_model(directory)
    config = read_json(path)
    check_config(config, path)
    return config
