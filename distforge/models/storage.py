"""The dtype that weights are stored in, which need not be the one they are computed in.

A champion is trained in float32 whatever it was read from. Its configuration's ``dtype`` says what
that was, so that an export has the size, the dtype and the values that others will read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from distforge.errors import InputError
from distforge.optim.precision import cpu_multiplies_bfloat16

LoadDtype = Literal["auto", "float32", "bfloat16", "float16"]
# As in a directory's files, for weights that are made float32 one by one when they are sharded.
TrainDtype = Literal["float32", "stored"]
_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_HALVES = (torch.bfloat16, torch.float16)


def dtype_of_files(files: Iterable[Path]) -> torch.dtype:
    """What most elements of safetensors files are stored in; only their headers are read."""
    elements = _elements(files)
    return _most(Counter({_NAMES[name]: elements[name] for name in _NAMES if elements[name]}))


def only_dtype_of_files(files: Iterable[Path]) -> torch.dtype:
    """What all fractions in them are stored in; float32 where they are of several dtypes."""
    fractions = {name for name in _elements(files) if name.startswith(("F", "BF"))}
    return _NAMES.get(fractions.pop(), torch.float32) if len(fractions) == 1 else torch.float32


def dtype_of_tensors(tensors: Iterable[Tensor]) -> torch.dtype:
    """The same of tensors."""
    elements: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype in _NAMES.values():
            elements[tensor.dtype] += tensor.numel()
    return _most(elements)


def widen_but_matrices_of_layers_(model: PreTrainedModel) -> None:
    """Make float32 what is small or drawn into before training: vectors and the vocabulary's."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = {id(end.weight) for end in ends if end is not None}
    for parameter in model.parameters():
        if parameter.ndim < 2 or id(parameter) in vocabulary:
            parameter.data = parameter.data.float()


def remember_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have `save_weights` store ``model`` in ``dtype``, whatever it is computed in meanwhile."""
    configs = [model.config]
    configs += [getattr(model.config, name, None) for name in model.config.sub_configs]
    for config in configs:
        if config is not None:
            config.dtype = dtype


def storage_dtype(model: PreTrainedModel) -> torch.dtype:
    """What `save_weights` stores the parameters in: the 16-bit dtype that the configuration names,
    or that of the parameters."""
    named = getattr(torch, str(getattr(model.config, "dtype", None)).removeprefix("torch."), None)
    return named if named in _HALVES else model.dtype


def computing_dtype(wanted: LoadDtype, stored: torch.dtype) -> torch.dtype:
    """What a model should be loaded in to be asked.

    "auto" is its own dtype where this machine multiplies in it, else float32: no CPU multiplies
    float16, not every one bfloat16.

    Raises:
        InputError: float16 on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if wanted == "float16" and not on_gpu:
        raise InputError("dtype is 'float16' on a CPU, which cannot compute in it; use 'auto'")
    if wanted != "auto":
        return _dtype(wanted)
    if stored == torch.bfloat16:
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if on_gpu
            else cpu_multiplies_bfloat16()
        )
        return stored if fast else torch.float32
    return stored if on_gpu else torch.float32


def save_weights(model: PreTrainedModel, directory: str | Path, **options: Any) -> None:
    """``model.save_pretrained`` in `storage_dtype`, which the written configuration names too.

    The model keeps its own dtype; tied weights stay tied.
    """
    dtype = storage_dtype(model)
    if dtype == model.dtype:
        model.save_pretrained(directory, **options)
        return
    model.save_pretrained(directory, state_dict=_rounded(model, dtype), **options)
    remember_dtype(model, dtype)  # save_pretrained has put in what the model computes in
    model.config.save_pretrained(directory)


@torch.no_grad()
def round_to_storage_(model: PreTrainedModel) -> None:
    """Give every parameter the value that its export will have, so that what is measured is what
    is shipped."""
    dtype = storage_dtype(model)
    if dtype != model.dtype:
        for name, parameter in model.named_parameters():
            if not _stays(model, name, dtype):
                parameter.copy_(parameter.to(dtype))


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    once: dict[int, Tensor] = {}
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if name in parameters and tensor.is_floating_point() and not _stays(model, name, dtype):
            # Tied weights are recognised by their memory, so each is rounded once.
            state[name] = once.setdefault(id(parameters[name]), tensor.to(dtype))
    return state


def _stays(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """Whether transformers loads this weight in float32 even into a model of ``dtype``."""
    attributes = ["_keep_in_fp32_modules_strict"]
    attributes += ["_keep_in_fp32_modules"] if dtype == torch.float16 else []
    kept = {part for attribute in attributes for part in getattr(model, attribute, None) or ()}
    return not kept.isdisjoint(name.split("."))


def _elements(files: Iterable[Path]) -> Counter[str]:
    """How many there are of each dtype, by safetensors' names."""
    elements: Counter[str] = Counter()
    for file in files:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - it is no mapping
                part = content.get_slice(name)
                elements[part.get_dtype()] += torch.Size(part.get_shape()).numel()
    return elements


def _most(elements: Counter[torch.dtype]) -> torch.dtype:
    return elements.most_common(1)[0][0] if elements else torch.float32


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
