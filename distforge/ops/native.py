"""Finds the native operators, and says why where they are not used."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from distforge.ops import choice
from distforge.ops.device_check import fault, name_of
from distforge.ops.self_check import OPERATORS

log = logging.getLogger("distforge.ops")

_ALL = "every operator"

# The oldest GPU that the kernels are compiled for (setup.py lists all), and the oldest whose tensor
# cores multiply bfloat16.
_OLDEST_CAPABILITY = (7, 5)
_OLDEST_BFLOAT16_PRODUCTS = (8, 0)

# Where an operator is held against the reference before it is first used. On a CPU the tests do.
CHECKED_DEVICES = ["cuda"]

_FLOAT = (torch.float32,)
_FLOAT_BFLOAT = (torch.float32, torch.bfloat16)
_FLOAT_HALVES = (torch.float32, torch.bfloat16, torch.float16)

# What the kernels take by operator and by the role of the tensor in it, on the CPU and on CUDA.
_DTYPES: dict[tuple[str, str], dict[str, tuple[torch.dtype, ...]]] = {
    ("newton_schulz", ""): {"cpu": _FLOAT_BFLOAT, "cuda": _FLOAT_HALVES},
    ("grokfast_momentum_into_", ""): {"cpu": _FLOAT, "cuda": _FLOAT},
    ("grokfast_momentum_into_", "update"): {"cpu": _FLOAT_BFLOAT, "cuda": _FLOAT_HALVES},
    ("orthogonal_update_", ""): {"cpu": _FLOAT, "cuda": _FLOAT},
    ("orthogonal_update_", "update"): {"cpu": _FLOAT_BFLOAT, "cuda": _FLOAT_HALVES},
    ("small_muon_step_", ""): {"cpu": _FLOAT},
}


@dataclass(frozen=True)
class Backend:
    """Which implementation runs, and why."""

    name: str  # "native" or "reference"
    reason: str  # one sentence


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
        return _Extension(
            None, _why_not_built() or f"the native extension cannot be loaded ({error})"
        )
    missing = [name for name in OPERATORS if not hasattr(torch.ops.distforge, name)]
    if missing:
        return _Extension(None, f"the native extension is older than this code ({missing[0]})")
    _register_fakes()
    return _Extension(module, "")


def _why_not_built() -> str:
    """What setup.py wrote down where it left the native part out; empty where it built it."""
    note = Path(__file__).parents[1] / "native_part.txt"
    if not note.exists() or any(note.parent.glob("_C.*")):
        return ""
    reason = note.read_text(encoding="utf-8").strip()
    return f"distforge was installed without its native part: {reason}"


def _register_fakes() -> None:
    @torch.library.register_fake("distforge::newton_schulz")
    def _(x: Tensor, coefficients: Sequence[float]) -> Tensor:
        return torch.empty_like(x)

    # The others return nothing: what they write has its shape already.
    torch.library.register_fake("distforge::grokfast_momentum_into_", lambda *_: None)
    torch.library.register_fake("distforge::orthogonal_update_", lambda *_: None)
    torch.library.register_fake("distforge::small_muon_step_", lambda *_: None)


def why_not_native(operator: str, tensors: Sequence[Tensor], role: str = "") -> str:
    """Why the native operator cannot take these tensors; empty when it can.

    ``role`` says which of its arguments they are, where another than the first has dtypes of its
    own ("update").
    """
    extension = _load()
    if extension.module is None:
        return extension.problem
    if choice.wish() == "reference":
        return f"{choice.VARIABLE}=reference"
    # Lists are long and of few kinds.
    for kind in {type(tensor) for tensor in tensors} - {Tensor, torch.nn.Parameter}:
        return f"the native kernels take plain tensors, not {kind.__name__}"
    for dtype, device in {(tensor.dtype, tensor.device) for tensor in tensors}:
        problem = _why_not_kind(_DTYPES[operator, role], dtype, device.type, role)
        if not problem and device.type == "cuda":
            products = operator == "newton_schulz" and dtype == torch.bfloat16
            problem = _why_not_cuda(extension.module, device, products)
        if not problem and device.type in CHECKED_DEVICES:
            problem = fault(operator, device, dtype)
        if problem:
            return problem
    return ""


def _why_not_kind(
    dtypes: dict[str, tuple[torch.dtype, ...]], dtype: torch.dtype, device: str, role: str
) -> str:
    if device not in dtypes:
        return f"it has no native kernel for the device {device}"
    if dtype not in dtypes[device]:
        names = " or ".join(str(known).removeprefix("torch.") for known in dtypes[device])
        what = f" as {role}" if role else ""
        return f"the native kernel takes {names}{what} on {device}, not {dtype}"
    return ""


def _why_not_cuda(module: ModuleType, device: torch.device, bfloat16_products: bool) -> str:
    if module.build_info()["cuda_architectures"] == "none":
        return "the native extension was built without CUDA"
    capability = torch.cuda.get_device_capability(device)
    needed = _OLDEST_BFLOAT16_PRODUCTS if bfloat16_products else _OLDEST_CAPABILITY
    if capability < needed:
        what = "bfloat16 products" if bfloat16_products else "the kernels"
        return f"{what} need compute capability {needed}, this GPU has {capability}"
    return ""


def check_kernels(device: torch.device) -> dict[str, str]:
    """Holds every native operator against the reference on a device; a second or two.

    Returns:
        By operator and dtype, as "newton_schulz bfloat16": why the reference runs in its place;
        empty where the kernel runs, and is right.
    """
    found = {}
    for operator in OPERATORS:
        role = "update" if (operator, "update") in _DTYPES else ""
        for dtype in _DTYPES[operator, role].get(device.type, ()):
            example = torch.empty(0, dtype=dtype, device=device)
            problem = why_not_native(operator, [example], role)
            problem = problem or fault(operator, example.device, dtype)
            found[name_of(operator, dtype)] = problem
    return found


@functools.cache
def tell_once(operator: str, reason: str) -> None:
    """Log why the reference runs in the place of a native operator, once for each reason; where
    there is no native part, once for all operators."""
    if reason == _load().problem and operator != _ALL:
        tell_once(_ALL, reason)
    else:
        log.warning("%s runs as the torch reference: %s", operator, reason)


def backend() -> Backend:
    """Which implementation of the operators runs here on float32 CPU tensors, and why."""
    problem = _load().problem
    if not problem and choice.wish() == "reference":
        problem = f"{choice.VARIABLE}=reference"
    if problem:
        return Backend("reference", problem)
    info = build_info()
    targets = f"CPU: {info['cpu_capability']}, CUDA: {info['cuda_architectures']}"
    return Backend("native", f"distforge._C is loaded ({targets})")


def build_info() -> dict[str, str]:
    """How the native extension was built and what this process runs it on, as printable pairs.

    Keys: ``native`` ("yes", or why not), ``torch``, and when native: ``compiler``,
    ``compiler_flags``, ``built_with_torch``, ``nvcc``, ``cuda_architectures``, ``cpu_capability``
    ("default", "avx2" or "avx512": the instruction set chosen at run time), ``cpu_products`` (what
    Newton–Schulz multiplies with, by input dtype). torch's own environment variables
    ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA limit the choice.
    """
    extension = _load()
    if extension.module is None:
        return {"native": f"no: {extension.problem}", "torch": torch.__version__}
    built: dict[str, str] = extension.module.build_info()
    chosen = {
        "cpu_capability": extension.module.cpu_capability(),
        "cpu_products": extension.module.cpu_products(),
    }
    return {"native": "yes", "torch": torch.__version__, **built, **chosen}
