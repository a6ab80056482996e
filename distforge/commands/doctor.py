"""``distforge doctor``: what is installed and what will be used."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from distforge.extras import EXTRAS, missing_modules
from distforge.ops import backend, build_info, check_kernels
from distforge.optim.precision import fastest_dtype
from distforge.training.engine_config import resolve_dtype

_PACKAGES = ("torch", "deepspeed", "transformers", "ray", "wandb", "mlflow-skinny", "peft", "numpy")


@dataclass(frozen=True)
class DoctorConfig:
    """Print versions, devices and kernels; nothing to set."""


def doctor(config: DoctorConfig) -> int:
    """Print the table; in plain text, since it is asked where torch alone is installed as well."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    rows = {"python": platform.python_version()}
    rows |= {name: _version(name) for name in _PACKAGES}
    rows |= {f"extra {name}": _extra(name) for name in EXTRAS}
    rows["device"] = torch.cuda.get_device_name(0) if cuda else platform.processor() or "cpu"
    rows["dtype 'auto'"] = resolve_dtype("auto", device)
    rows["ns_dtype 'auto'"] = str(fastest_dtype(device)).removeprefix("torch.")
    rows["kernels"] = str(backend())
    rows |= {f"native {key}": str(value) for key, value in build_info().items()}
    problems = {name: problem for name, problem in check_kernels(device).items() if problem}
    verdict = "run as the torch reference:" if problems else "compute what the reference does"
    rows[f"kernels on {device}"] = verdict
    rows |= problems
    width = max(map(len, rows))
    print("\n".join(f"{part:{width}}  {found}" for part, found in rows.items()))
    return 0


def _extra(name: str) -> str:
    missing = missing_modules(name)
    if not missing:
        return "installed"
    return f"without {', '.join(missing)}; pip install 'distforge[{name}]'"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
