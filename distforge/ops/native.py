"""Finds the native operators, and says why where they are not used."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger("distforge.ops")

# The oldest GPU that the kernels are compiled for (setup.py lists all).
_OLDEST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Backend:
    """Which implementation runs, and why."""

    name: str  # "native" or "reference"
    reason: str  # one sentence
    operators: Mapping[str, str]  # operator -> "native" or "reference"


@dataclass(frozen=True)
class _Extension:
    module: ModuleType | None
    problem: str  # empty when the module is there


@functools.cache
def _load() -> _Extension:
    """Import distforge._C, which registers torch.ops.distforge.*, and add the fakes."""
    try:
        module = importlib.import_module("distforge._C")
    except ImportError as error:
        # Absent, or built against a torch that this one cannot serve: either way the reference is
        # right, and the reason is told where it is first used.
        return _Extension(None, f"the native extension cannot be loaded ({error})")
    _register_fakes()
    return _Extension(module, "")


def _register_fakes() -> None:
    @torch.library.register_fake("distforge::grokfast_momentum_")
    def _(
        grad: Tensor,
        ema: Tensor | None,
        momentum: Tensor,
        alpha: float,
        lamb: float,
        beta: float,
        nesterov: bool,
    ) -> Tensor:
        return torch.empty_like(grad)


def misfit(tensor: Tensor) -> str:
    """Why the native operators cannot take this tensor; empty when they can."""
    extension = _load()
    if extension.module is None:
        return extension.problem
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        return f"the native kernels take float32, not {getattr(tensor, 'dtype', type(tensor))}"
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"the native kernels take plain tensors, not {type(tensor).__name__}"
    if tensor.device.type == "cuda":
        return _cuda_misfit(extension.module, tensor.device)
    if tensor.device.type != "cpu":
        return f"there are no native kernels for the device {tensor.device.type}"
    return ""


def _cuda_misfit(module: ModuleType, device: torch.device) -> str:
    if module.build_info()["cuda_architectures"] == "none":
        return "the native extension was built without CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        return (
            f"the kernels need compute capability {_OLDEST_CAPABILITY}, this GPU has {capability}"
        )
    return ""


@functools.cache
def tell_once(operator: str, reason: str) -> None:
    """Log why the reference runs in the place of a native operator, once for each reason."""
    log.warning("%s runs as the torch reference: %s", operator, reason)


def backend() -> Backend:
    """Which implementation of the operators runs here on float32 CPU tensors, and why.

    ``newton_schulz`` has no native kernel and is always the reference.
    """
    problem = _load().problem
    if problem:
        operators = {"grokfast_momentum_": "reference", "newton_schulz": "reference"}
        return Backend("reference", problem, operators)
    info = build_info()
    targets = f"CPU: {info['cpu_capability']}, CUDA: {info['cuda_architectures']}"
    reason = f"distforge._C is loaded ({targets})"
    operators = {"grokfast_momentum_": "native", "newton_schulz": "reference"}
    return Backend("native", reason, operators)


def build_info() -> dict[str, str]:
    """How the native extension was built and what this process runs it on, as printable pairs.

    Keys: ``native`` ("yes", or why not), ``torch``, and when native: ``compiler``,
    ``compiler_flags``, ``built_with_torch``, ``nvcc``, ``cuda_architectures``, ``cpu_capability``
    ("default", "avx2" or "avx512": the instruction set chosen at run time).
    """
    extension = _load()
    if extension.module is None:
        return {"native": f"no: {extension.problem}", "torch": torch.__version__}
    built: dict[str, str] = extension.module.build_info()
    capability = {"cpu_capability": extension.module.cpu_capability()}
    return {"native": "yes", "torch": torch.__version__, **built, **capability}
