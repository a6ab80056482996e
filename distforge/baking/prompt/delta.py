"""What a bake changed, apart from the model it was baked into: merged at any strength, kept, read.

An adapter (LoRA, in peft's own file format) or the difference of every weight. Both scale: half of
it half-bakes the prompt, without training again.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from distforge import durable
from distforge.baking.prompt.prompt_config import LoraSettings
from distforge.errors import InputError, first_line
from distforge.models.storage import round_to_storage_

MAX_STRENGTH = 1.5
RECORD_FILE = "baked_prompt.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_DIFFERENCES_FILE = "weight_differences.safetensors"
_ADAPTER = "default"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Delta:
    """A change of weights.

    state: by parameter name; adapter weights, or differences where ``adapter`` is None.
    base_sha256: of the weights that it changes, see `weights_sha256`.
    """

    state: dict[str, Tensor]
    adapter: LoraConfig | None
    base_sha256: str

    def merge(self, base: PreTrainedModel, strength: float = 1.0) -> PreTrainedModel:
        """A copy of ``base`` with ``strength`` times the change; 0 is ``base``, 1 the whole bake.

        It computes in ``base``'s dtype; its values are those that its export will have, see
        `round_to_storage_`.

        Raises:
            InputError: a strength outside [0, 1.5].
        """
        check_strength(strength)
        # Added up in float32: the change is small beside the weights, and rounded once.
        model = copy.deepcopy(base).float()
        if self.adapter is None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.add_(self.state[name].to(parameter.device), alpha=strength)
            return _finished(model, base)
        wrapped = add_adapter(model, self.adapter)
        self._load_into(model)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(_ADAPTER, strength)
        return _finished(wrapped.merge_and_unload(), base).requires_grad_(True)

    def save(self, directory: Path, record: dict[str, Any]) -> None:
        """Write ``directory``, which must not exist: whole or not at all.

        ``record`` says what was baked; the hash of the base goes with it.
        """
        partial = durable.temporary(directory)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if self.adapter is None:
            save_file(self.state, partial / _DIFFERENCES_FILE)
        else:
            self.adapter.save_pretrained(partial)
            save_file(
                {_peft_name(name): value for name, value in self.state.items()},
                partial / _WEIGHTS_FILE,
            )
        content = {**record, "base_sha256": self.base_sha256}
        durable.write_json(partial / RECORD_FILE, content)
        durable.publish_directory(partial, directory)

    def _load_into(self, model: PreTrainedModel) -> None:
        parameters = {n: p for n, p in model.named_parameters() if is_adapter(n)}
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.state[name])


def _finished(merged: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    round_to_storage_(merged)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(base.get_parameter(name).dtype)
    return merged


def read_delta(directory: Path, base: PreTrainedModel) -> tuple[Delta, dict[str, Any]]:
    """What `Delta.save` wrote, and its record.

    Raises:
        InputError: not such a directory, broken, or baked into another model than ``base``.
    """
    try:
        record = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
        is_adapter_file = (directory / _WEIGHTS_FILE).is_file()
        state = load_file(directory / (_WEIGHTS_FILE if is_adapter_file else _DIFFERENCES_FILE))
        adapter = _read_adapter_config(directory) if is_adapter_file else None
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{directory} is no baked prompt that can be read ({first_line(error)}); give "
            "the adapter directory of an earlier bake"
        ) from error
    found, wanted = weights_sha256(base), record.get("base_sha256")
    if found != wanted:
        raise InputError(
            f"the adapter in {directory} belongs to another model: it was baked into weights with "
            f"sha256 {str(wanted)[:12]}…, this model's is {found[:12]}…; give the model it was "
            "made from"
        )
    if adapter is not None:
        adapter.inference_mode = False
        state = {_own_name(name): value for name, value in state.items()}
    return Delta(state, adapter, found), record


def _read_adapter_config(directory: Path) -> LoraConfig:
    """Read here, since peft would ask the hub where the file is missing."""
    values = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    if values.get("peft_type") != PeftType.LORA:
        raise ValueError(f"its {CONFIG_NAME} describes {values.get('peft_type')!r}, not LORA")
    return LoraConfig(**LoraConfig.check_kwargs(**values))


def lora_config(settings: LoraSettings) -> LoraConfig:
    """peft's configuration of an adapter."""
    modules = settings.target_modules
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules[0] if modules == ("all-linear",) else list(modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_adapter(model: PreTrainedModel, config: LoraConfig):  # type: ignore[no-untyped-def]
    """Put an adapter into ``model``, in place; the peft model around it.

    Its first output is zero. Raises `InputError` where the model has none of the target modules.
    """
    try:
        with warnings.catch_warnings():
            # GPT-2's Conv1D stores its weights transposed; peft notices and says so.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            # peft's use of a name that transformers deprecates; nobody here can change it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            # Of experts that are one parameter, where no linear layer is meant.
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match")
            own = copy.deepcopy(config)
            if _has_state_space(model):
                # Fast kernels read this projection's weight alone; peft refuses to adapt it.
                own.exclude_modules = ["out_proj"]
            return get_peft_model(model, own, adapter_name=_ADAPTER)
    except ValueError as error:
        raise InputError(
            f"no adapter fits {type(model).__name__}: {error}; set lora.target_modules to modules "
            "that it has"
        ) from error


def _has_state_space(model: PreTrainedModel) -> bool:
    return any(name.endswith(".A_log") for name, _ in model.named_parameters())


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def check_strength(strength: float, graded: bool = False) -> None:
    """Raise `InputError` unless ``strength`` lies in [0, 1.5], or [0, 1] where it is a share of
    answers (``graded``)."""
    most = 1.0 if graded else MAX_STRENGTH
    if not 0 <= strength <= most:
        raise InputError(f"strength is {strength}; expected a number in [0, {most:g}]")


def weights_sha256(model: PreTrainedModel) -> str:
    """Hexadecimal digest of all parameters, by name, with shape and bytes as float32."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def with_explicit_modules(config: LoraConfig, model: PreTrainedModel) -> LoraConfig:
    """The configuration as it was resolved on ``model``, which carries the adapter."""
    resolved = model.peft_config[_ADAPTER]
    return dataclasses.replace(config, target_modules=sorted(resolved.target_modules))


def _peft_name(name: str) -> str:
    return _PEFT_PREFIX + name.replace(f".{_ADAPTER}.", ".")


def _own_name(name: str) -> str:
    stem = name.removeprefix(_PEFT_PREFIX)
    for part in (".lora_A.", ".lora_B."):
        stem = stem.replace(part, f"{part}{_ADAPTER}.")
    return stem
