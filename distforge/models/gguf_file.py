"""A model in a GGUF file, llama.cpp's format, unpacked so that it can be trained."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from distforge.activity import named
from distforge.errors import InputError, first_line
from distforge.models.loading import check_model, check_pairing, complete_tokenizer
from distforge.models.quiet import quiet_transformers
from distforge.models.storage import LoadDtype, remember_dtype

_FLOATS = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# End of sequence, of turn, of message: llama.cpp ends a generation with any of them.
_STOPS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class GgufModel:
    """A model in float32 and evaluation mode that will be stored in the dtype that was asked for,
    its tokenizer with its chat template, and what the file says of itself."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    description: dict[str, str]


@named("reading {path}")
def read_gguf(path: Path, dtype: LoadDtype = "auto") -> GgufModel:
    """Read a ``.gguf`` file, quantized or not.

    Args:
        dtype: to store the weights in. "auto" is the file's own where none is quantized, else
            bfloat16, which CPUs and GPUs compute in and which rounds far finer than any block of
            eight bits or fewer.

    Raises:
        InputError: no GGUF file, of an architecture that transformers cannot read, or broken.
    """
    header = _read_header(path)
    fields = {name: _value(header, f"general.{name}") for name in ("architecture", "name")}
    model = _load(path, str(fields["architecture"]))
    source = str(path)
    check_model(model, source)
    tokens = header.get_field("tokenizer.ggml.tokens")
    tokenizer = _load_tokenizer(path, 0 if tokens is None else len(tokens.data))
    check_pairing(model, tokenizer, source)
    model.generation_config.eos_token_id = _stops(header, model)
    chosen = _own_dtype(header) if dtype == "auto" else getattr(torch, dtype)
    remember_dtype(model, chosen)
    description = {name: str(value) for name, value in fields.items() if value}
    description["quantization"] = _quantization(header)
    return GgufModel(model.eval(), tokenizer, description)


def _read_header(path: Path) -> Any:
    try:
        header = GGUFReader(path)
    except Exception as error:  # numpy's and its own types come of arbitrary bytes
        raise InputError(
            f"{path} is not a readable GGUF file ({first_line(error)}); download or copy it again"
        ) from error
    if not isinstance(_value(header, "general.architecture"), str):
        raise InputError(f"{path} names no architecture; download or copy the GGUF file again")
    return header


def _load(path: Path, architecture: str) -> PreTrainedModel:
    try:
        with _alone(path) as directory, quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                directory,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        missing = sorted(info["missing_keys"])
        reason = f"it lacks {missing[0]}" if missing else ""
    except Exception as error:  # as for other models: the reason is passed on, not hidden
        reason = first_line(error)
    if reason:
        raise InputError(
            f"the {architecture!r} model in {path} cannot be read by this transformers: {reason}; "
            "give the safetensors that the GGUF file was made from"
        )
    return model


def _load_tokenizer(path: Path, count: int) -> PreTrainedTokenizerBase:
    try:
        with _alone(path) as directory, quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise InputError(
            f"the tokenizer in {path} cannot be read by this transformers: {first_line(error)}; "
            "give the directory that the GGUF file was made from"
        ) from error
    return complete_tokenizer(_with_ids_below(count, tokenizer), path)


def _with_ids_below(count: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer with the file's ``count`` tokens alone: transformers adds GPT-2's end of
    text to every byte-level vocabulary that has none, an id beyond the model's rows."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in content["added_tokens"] if token["id"] < count]
    if own == content["added_tokens"]:
        return tokenizer
    content["added_tokens"] = own
    kept = ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{name: value for name in kept if (value := tokenizer.init_kwargs.get(name)) is not None},
    )


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A directory with nothing but the file: transformers would take other models' files too."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, path.name).symlink_to(path.resolve())
        yield Path(directory)


def _stops(header: Any, model: PreTrainedModel) -> int | list[int]:
    """Every id that ends a generation; one alone where there is one."""
    named = [_value(header, f"tokenizer.ggml.{name}_token_id") for name in _STOPS]
    rows = model.get_input_embeddings().weight.shape[0]
    stops = sorted({int(stop) for stop in named if stop is not None and 0 <= int(stop) < rows})
    return stops[0] if len(stops) == 1 else stops


def _own_dtype(header: Any) -> torch.dtype:
    kinds = {tensor.tensor_type for tensor in header.tensors}
    if not kinds <= _FLOATS.keys():
        return torch.bfloat16
    # Norms are float32 in a file of halves.
    narrow = [dtype for kind, dtype in _FLOATS.items() if kind in kinds and dtype.itemsize == 2]
    return narrow[0] if narrow else torch.float32


def _quantization(header: Any) -> str:
    """llama.cpp's name for the mixture of types, such as Q4_1."""
    try:
        return LlamaFileType(_value(header, "general.file_type")).name.removeprefix("MOSTLY_")
    except ValueError:
        return ""


def _value(header: Any, key: str) -> Any:
    field = header.get_field(key)
    return None if field is None else field.contents()
