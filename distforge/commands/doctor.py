"""``distforge doctor``: what is installed and what will be used."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from distforge.ops import backend, build_info, check_kernels
from distforge.optim.precision import fastest_dtype
from distforge.training.engine_config import resolve_dtype

_PACKAGES = ("torch", "deepspeed", "transformers", "ray", "wandb", "mlflow-skinny", "peft", "numpy")


@dataclass(frozen=True)
class DoctorConfig:
    """Print versions, devices and kernels; nothing to set."""


def doctor(config: DoctorConfig) -> int:
    """Print the table."""
    table = Table("part", "found")
    table.add_row("python", platform.python_version())
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    table.add_row(
        "device", torch.cuda.get_device_name(0) if cuda else platform.processor() or "cpu"
    )
    table.add_row("dtype 'auto'", resolve_dtype("auto", device))
    table.add_row("ns_dtype 'auto'", str(fastest_dtype(device)).removeprefix("torch."))
    table.add_row("kernels", str(backend()))
    for key, value in build_info().items():
        table.add_row(f"native {key}", str(value))
    problems = {name: problem for name, problem in check_kernels(device).items() if problem}
    verdict = "run as the torch reference:" if problems else "compute what the reference does"
    table.add_row(f"kernels on {device}", verdict)
    for name, problem in problems.items():
        table.add_row(name, problem)
    Console().print(table)
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
