"""Loading a champion: a directory, a hub name, a .safetensors with its .json, or a legacy .pt."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from distforge.errors import InputError
from distforge.models.handoff import read_pair, read_pickle

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Champion:
    """A loaded model in fp32 and evaluation mode, its tokenizer, and where they came from.

    ``sha256`` covers the weight files; it is empty for a model from the hub. ``metadata`` is what
    phase 2 wrote beside the weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    sha256: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def load_champion(source: str) -> Champion:
    """Load from a path, or from the hub when ``source`` is no path and looks like a hub name.

    No code from the model's side is run: weights are safetensors, or a pickle of plain tensors.

    Raises:
        InputError: nothing there, broken or incomplete weights, a tokenizer that lacks an end of
            sequence or has more ids than the model has rows, or phase-2 metadata that does not
            describe a chosen champion.
    """
    transformers_logging.disable_progress_bar()
    path = Path(source)
    if path.is_file():
        reader = {".safetensors": read_pair, ".pt": read_pickle, ".pth": read_pickle}.get(
            path.suffix
        )
        if reader is None:
            raise InputError(f"{path} ends in {path.suffix!r}; expected .safetensors or .pt")
        model, tokenizer_source, metadata = reader(path)
        files = [path]
    elif path.is_dir():
        _require_weights(path)
        model, tokenizer_source, metadata = _load_pretrained(source), source, {}
        files = sorted(path.glob("*.safetensors"))
    elif source.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(source) or path.suffix:
        raise InputError(
            f"champion {source!r} does not exist; give a Hugging Face directory, a .safetensors or "
            ".pt file, or have one made with champion.make = true"
        )
    else:
        model, tokenizer_source, metadata, files = _load_pretrained(source), source, {}, []
    tokenizer = _load_tokenizer(tokenizer_source)
    _check_pairing(model, tokenizer, source)
    return Champion(model.float().eval(), tokenizer, source, _sha256(files), metadata)


def _require_weights(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json; expected a Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} has no .safetensors weights; save the model again with save_pretrained"
        )


def _load_pretrained(source: str) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise many types for a bad file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"champion {source!r} cannot be loaded: {reason}") from error
    wrong = sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])})
    if wrong:
        raise InputError(
            f"champion {source!r}: its weights lack or misshape {', '.join(wrong[:3])}"
            f"{' and others' if len(wrong) > 3 else ''}; expected the weights that its config names"
        )
    return model


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # as above: the reason is passed on, not hidden
        raise InputError(
            f"no tokenizer can be loaded from {source!r} ({error}); save one there with "
            "tokenizer.save_pretrained"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {source!r} has no eos token; set tokenizer.eos_token and save it"
        )
    if tokenizer.pad_token_id is None:
        logger.warning("the tokenizer in %s has no pad token; padding with eos", source)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_pairing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            f"champion {source!r}: its tokenizer has {len(tokenizer)} ids, its embedding {rows} "
            "rows; they do not belong together"
        )


def _sha256(files: list[Path]) -> str:
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
