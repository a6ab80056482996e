"""Writing a model so that anyone's transformers can load it."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from distforge import durable
from distforge.activity import named
from distforge.errors import InputError, explain_file_error
from distforge.models.card import CARD_FILE, model_card
from distforge.models.quiet import quiet_transformers
from distforge.models.storage import save_weights
from distforge.rendering import Renderer

logger = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OWN_SUBDIRECTORY = "additional_chat_templates"


@named("writing the model to {directory}")
def export_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a Hugging Face directory: safetensors, tokenizer, generation config, model card.

    `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it without
    further arguments. Weights have the dtype that they were read from, see `storage`; tied weights
    are written once. The generation config is the model's own, with every end that it, its
    tokenizer and its chat template know; a model that has none is greedy. The files are written
    beside ``directory`` and moved there when they are complete, so a failure leaves what was there
    before. The model and the tokenizer are not changed.

    Args:
        model: a transformers model whose parameters are whole on this process.
        tokenizer: has an end of sequence; its padding may be any id.
        directory: new, empty, or an earlier export, which is replaced.

    Raises:
        InputError: ``directory`` holds something else, which is left alone, or cannot be written.
        TypeError: the model is not a transformers model, or carries unmerged adapters.
    """
    if not isinstance(model, PreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        # Such a model's own save_pretrained, if any, would write its adapter alone.
        raise TypeError(f"cannot export a {type(model).__name__}: merge and unload adapters first")
    directory = directory.resolve()
    if directory.exists() and not _is_replaceable(directory):
        raise InputError(
            f"{directory} exists and is not an exported model; export to another directory or "
            "empty it"
        )
    # A name of its own, so that the next export removes what a killed one left.
    scratch = directory.with_name(f".{directory.name}.new")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _write(model, tokenizer, scratch / "new")
        durable.publish_directory(scratch / "new", directory, replace=True)
    except Exception as error:
        explained = explain_file_error(error)
        if not explained:
            raise
        raise InputError(
            f"cannot write the model to {directory} ({explained}), or export to another directory"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    before = model.generation_config
    model.generation_config = _generation_config(model, tokenizer)
    try:
        with quiet_transformers():
            save_weights(model, directory)
        tokenizer.save_pretrained(directory)
        card = model_card(model, Renderer(tokenizer, model))
        durable.write_text(directory / CARD_FILE, card)
    finally:
        model.generation_config = before


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    own = model.generation_config
    # What transformers made of the model's configuration says nothing of how it writes.
    settings = GenerationConfig() if own._from_model_config else copy.deepcopy(own)
    if settings.do_sample is None:
        settings.do_sample = False
    try:
        settings.validate(strict=True)
    except ValueError as error:  # transformers would not save it
        logger.warning("the model's generation config is not kept: %s", str(error).splitlines()[0])
        settings = GenerationConfig(do_sample=False)
    stops = Renderer(tokenizer, model).stops
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = stops[0] if len(stops) == 1 else list(stops)
    settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _is_replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    entries = {entry.name: entry for entry in directory.iterdir()}
    if not entries:
        return True
    subdirectories = {name for name, entry in entries.items() if entry.is_dir()}
    return (
        "config.json" in entries
        and any(name in entries for name in _WEIGHTS)
        and subdirectories <= {_OWN_SUBDIRECTORY}
    )
