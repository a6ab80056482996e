"""Writing a model so that anyone's transformers can load it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from distforge.errors import InputError

_MARKS = ("config.json", "tokenizer_config.json")


def export_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a Hugging Face directory: safetensors, tokenizer, greedy generation config.

    It is written beside ``directory`` and moved there when it is complete. An earlier export is
    replaced; any other non-empty directory is refused with `InputError`, and left as it is.
    """
    directory = directory.absolute()
    if directory.exists() and not _is_export(directory):
        raise InputError(f"{directory} exists and is not an exported model; export elsewhere")
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(partial)  # type: ignore[operator]
        tokenizer.save_pretrained(partial)
        if directory.exists():
            shutil.rmtree(directory)
        os.rename(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_export(directory: Path) -> bool:
    present = [(directory / name).is_file() for name in _MARKS]
    return directory.is_dir() and (all(present) or not any(directory.iterdir()))
