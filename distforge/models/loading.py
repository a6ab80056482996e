"""Loading a champion: a directory, hf://NAME, a .safetensors with its .json, or a legacy .pt.

The one place that calls the hub and, but for `gguf_file`, transformers' ``from_pretrained``:
always without code that comes with a model, and without a network unless the source says ``hf://``.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from distforge.activity import named
from distforge.errors import InputError, explain_file_error, first_line
from distforge.models.champion_file import READERS, ChampionParts, read_json
from distforge.models.quiet import quiet_transformers
from distforge.models.storage import (
    LoadDtype,
    TrainDtype,
    computing_dtype,
    dtype_of_files,
    dtype_of_tensors,
    only_dtype_of_files,
    remember_dtype,
    widen_but_matrices_of_layers_,
)
from distforge.models.weight_files import (
    files_sha256,
    model_directory,
    of_the_model,
    some,
    weight_files,
)
from distforge.optim.precision import fastest_dtype
from distforge.rendering.template import DATE, pin_date

logger = logging.getLogger(__name__)

_HUB_PREFIX = "hf://"
_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?)"
    r"(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?"
)
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# Of nats a token at chance, log V: trained models are at a third of it, and at this or more with
# ids that mean something else. How many parameters a model has that is asked.
_CHANCE, _ASKABLE = 0.65, (10_000_000, 2_000_000_000)
_ORDINARY = (
    "The capital of France is Paris. Water boils at one hundred degrees. The sun rises in the east "
    "and sets in the west, and most people sleep at night."
)
_HUB_EXCLUDED = ("*/*", "consolidated*")  # other formats of the same weights


@dataclass(frozen=True)
class Champion:
    """A loaded model in evaluation mode, its tokenizer, and where they came from.

    The model's configuration remembers the dtype of the weights that were read, see `storage`.
    The tokenizer has an end of sequence and a padding id. ``source`` is as it was given.
    ``sha256`` is the hexadecimal digest of the weights file; of several, of their sha256sum
    listing in name order. ``metadata`` is what phase 2 wrote beside the weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    sha256: str
    metadata: dict[str, Any] = field(default_factory=dict)


@named("loading the model {source}")
def load_champion(source: str, dtype: LoadDtype | TrainDtype = "float32") -> Champion:
    """Load from a path, also a run's, or from the hub where ``source`` is ``hf://NAME[@REVISION]``.

    Nothing that comes with the model is executed: weights are safetensors, or a pickle of plain
    tensors, and remote code is off. Training needs float32; for asking alone, ``dtype`` may be
    another, see `computing_dtype`. With "stored", for an engine that makes each weight float32 as
    it shards it, a directory's matrices of layers stay as they are in its files.

    Raises:
        InputError: nothing there, broken or incomplete weights, a tokenizer that is missing, lacks
            an end of sequence or has more ids than the model has rows, or phase-2 metadata that
            does not describe a selected champion.
    """
    path = model_directory(source)
    if path.is_file():
        reader = READERS.get(path.suffix)
        if reader is None:
            raise InputError(
                f"the model {source!r} is a file that ends in {path.suffix!r}; expected "
                ".safetensors or .pt (`distforge champion import` makes a directory of a .gguf)"
            )
        parts = reader(path)
        stored = dtype_of_tensors(parts.weights.values())
        whole: LoadDtype = "float32" if dtype == "stored" else dtype
        model = _build(parts, path, computing_dtype(whole, stored))
        metadata, files = parts.metadata, [path]
        check_model(model, source)
        tokenizer = load_tokenizer(parts.tokenizer)
    else:
        directory = path if path.is_dir() else fetch_from_hub(source)
        files, metadata = weight_files(directory), {}
        model, tokenizer = load_model(directory, source, dtype), load_tokenizer(directory)
        stored = dtype_of_files(of_the_model(files))
    check_pairing(model, tokenizer, source)
    remember_dtype(model, stored)
    if speaks_another_language(model.eval(), tokenizer):
        logger.warning(
            "%s finds ordinary text no likelier than chance: its tokenizer is another model's, or "
            "its weights are not trained; take both from one place",
            source,
        )
    if dtype == "stored":
        widen_but_matrices_of_layers_(model)
    return Champion(model.eval(), tokenizer, source, files_sha256(files), metadata)


def fetch_from_hub(source: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """The directory of the local cache with the hub's ``files`` (shell patterns) of that name.

    Raises `InputError` when ``source`` is a path, no name of the hub, or cannot be had.
    """
    if not source.startswith(_HUB_PREFIX):
        raise InputError(
            f"the model {source!r} does not exist; give a Hugging Face directory, a .safetensors "
            "or .pt file, or hf://NAME for a model of the hub, or make a small one with "
            "`distforge champion make`"
        )
    named = _HUB_NAME.fullmatch(source.removeprefix(_HUB_PREFIX))
    if named is None:
        raise InputError(
            f"the model {source!r} names no model of the hub; expected hf://OWNER/MODEL or "
            "hf://OWNER/MODEL@REVISION"
        )
    try:
        return Path(
            snapshot_download(
                named["name"],
                revision=named["revision"],
                allow_patterns=list(files),
                ignore_patterns=list(_HUB_EXCLUDED),
            )
        )
    except GatedRepoError as error:
        raise InputError(
            f"the model {source!r} is gated: the hub gives it to accounts that accepted its "
            "conditions; accept them on its page and log in with `hf auth login`, or download it "
            "where you have it and give its directory"
        ) from error
    except Exception as error:  # the hub's client raises its own and its network library's types
        raise InputError(
            f"the model {source!r} cannot be had from the hub ({first_line(error)}); check the "
            "name, or download it where there is a network and give its directory"
        ) from error


def load_model(
    directory: Path, source: str, dtype: LoadDtype | TrainDtype = "float32"
) -> PreTrainedModel:
    """A directory's model, whole and finite; errors name it by ``source``.

    Raises:
        InputError: broken or incomplete weights, or a model that cannot be trained as it is.
    """
    files = weight_files(directory)
    _check_no_code(directory, source)
    try:
        if dtype == "stored":
            model, info = _read(directory, only_dtype_of_files(of_the_model(files)))
            if _computes_buffers_narrow(model):
                model, info = _read(directory, torch.float32)
        else:
            stored = dtype_of_files(of_the_model(files))
            model, info = _read(directory, computing_dtype(dtype, stored))
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise many types for a bad file
        broken = f"{first_line(error)}; save it again with save_pretrained"
        reason = explain_file_error(error) or broken
        raise InputError(f"the model in {directory} cannot be loaded: {reason}") from error
    _check_complete(info, directory)
    if info["unexpected_keys"]:  # usual on the hub: heads and towers of a larger model
        logger.warning(
            "%s: weights that its config does not know are ignored: %s",
            directory,
            some(sorted(info["unexpected_keys"])),
        )
    check_model(model, source)
    return model


def _read(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    with quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are listed; refused above
            output_loading_info=True,
        )
    return model, info


def _computes_buffers_narrow(model: PreTrainedModel) -> bool:
    """Whether what no file holds was rounded to the weights' dtype, as Gemma's scale of embeddings:
    made float32 again it would be another."""
    floats = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    return any(buffer.dtype != torch.float32 for buffer in floats)


def _check_no_code(directory: Path, source: str) -> None:
    config = read_json(directory / "config.json")
    kind, code = config.get("model_type"), config.get("auto_map")
    if code and kind not in CONFIG_MAPPING:
        raise InputError(
            f"the model {source!r} is of the type {kind!r}, which this transformers does not know, "
            f"and brings code for it ({some(sorted(map(str, code)))}), which is never run; use a "
            "model of a type that transformers has, or a version of it that has this one"
        )


def _build(parts: ChampionParts, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    values = {k: v for k, v in parts.config.items() if k not in ("model_type", "auto_map")}
    try:
        config = AutoConfig.for_model(parts.config["model_type"], **values)
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=parts.weights,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # configurations validate themselves with many types
        raise InputError(
            f"{path}: its config does not describe a causal language model of this transformers: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    _check_complete(info, path)
    if info["unexpected_keys"]:
        raise InputError(
            f"{path}: its config does not know {some(sorted(info['unexpected_keys']))}; save "
            "weights and config from one model"
        )
    return model


def _check_complete(info: dict[str, Any], origin: Path) -> None:
    """transformers only warns of these, and puts random weights in their place."""
    misshapen = [
        f"{name} has shape {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    faults = misshapen + [f"{name} is missing" for name in sorted(info["missing_keys"])]
    if faults:
        raise InputError(
            f"{origin}: its weights do not fit its config: {some(faults)}; save both from one model"
        )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A directory's tokenizer, with an end of sequence, a padding id and, where its chat template
    prints the date, always the same one.

    Raises:
        InputError: there is none, or it has no end of sequence.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        # Some classes make themselves an empty vocabulary when their files are missing.
        empty = tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys()
        reason = "it has no vocabulary" if empty else ""
    except Exception as error:  # as for models: the reason is passed on, not hidden
        reason = first_line(error)
    if reason:
        raise InputError(
            f"no tokenizer can be loaded from {directory}: {reason}; save it there with "
            "tokenizer.save_pretrained"
        )
    return complete_tokenizer(tokenizer, directory)


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, origin: Path) -> PreTrainedTokenizerBase:
    """The same tokenizer with a padding id; `InputError` where it has no end of sequence."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {origin} has no end of sequence; name one of its tokens with "
            "tokenizer.eos_token = ... and save it again, or set eos_token in "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        _say_padding(str(origin), str(tokenizer.eos_token))
        tokenizer.pad_token = tokenizer.eos_token
    if pin_date(tokenizer):
        _say_date(str(origin))
    return tokenizer


@functools.cache
def _say_date(directory: str) -> None:
    """Once a process and directory."""
    logger.warning(
        "the chat template in %s prints the date of the day; here, and in what is exported, it "
        "prints %s",
        directory,
        DATE,
    )


@functools.cache
def _say_padding(directory: str, eos: str) -> None:
    """Once a process and directory."""
    logger.warning("the tokenizer in %s has no padding token; padding with %s", directory, eos)


def check_model(model: PreTrainedModel, source: str) -> None:
    """`InputError` unless the weights are finite, not quantized, and tied as the config says."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError(f"the model {source!r} is quantized; give its full-precision weights")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model, "_tied_weights_keys", None) and model.config.tie_word_embeddings
    if tied and head.weight is not embedding.weight:
        # transformers keeps both, until something ties them and one is lost.
        raise InputError(
            f"the model {source!r}: its config ties the output head to the embedding, but its "
            "weights hold two that differ; set tie_word_embeddings to false in the config"
        )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(
                f"the model {source!r}: {name} holds values that are not finite; use a checkpoint "
                "from before they appeared"
            )


@torch.no_grad()
def speaks_another_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model is as surprised by plain English as by random ids, which is what happens
    with the tokenizer of another model whose ids it has rows for.

    Not asked of small models, which may know a language of their own, nor where it would take long:
    of large ones, and in a dtype that this processor does not multiply.
    """
    if not _ASKABLE[0] <= model.num_parameters() <= _ASKABLE[1]:
        return False
    fast = (torch.float32, fastest_dtype(torch.device("cpu")))
    if model.device.type == "cpu" and model.dtype not in fast:
        return False
    ids = torch.tensor([tokenizer(_ORDINARY)["input_ids"][:64]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    return bool(nats > _CHANCE * math.log(logits.shape[-1]))


def check_pairing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """`InputError` unless the model has a row for each of the tokenizer's ids."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise InputError(
            f"the model {source!r}: its tokenizer has ids up to {largest}, its embedding {rows} "
            "rows; save the model and the tokenizer that belong together, or resize the model "
            f"with resize_token_embeddings({largest + 1})"
        )
