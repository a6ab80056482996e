"""``distforge doctor``: what is installed, what will be used, and what is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from distforge.commands.health import Check, check_machine, installed_version
from distforge.commands.hosts import PORT, check_hosts
from distforge.errors import require_in
from distforge.extras import EXTRAS, missing_modules
from distforge.ops import backend, build_info, check_kernels
from distforge.optim.precision import fastest_dtype
from distforge.training.engine_config import resolve_dtype

_PACKAGES = ("torch", "deepspeed", "transformers", "ray", "wandb", "mlflow-skinny", "peft", "numpy")
_MISSING_SOMETHING = 1
_MARKS = {"ok": "ok", "note": "note", "missing": "MISSING"}


@dataclass(frozen=True)
class DoctorConfig:
    """See whether this machine has what a run needs; exit status 1 where something is missing.

    runs: the folder that runs are written to.
    registry: the registry; by default $DISTFORGE_REGISTRY_URI, or registry.db in ``runs``.
    hub: also see whether the Hugging Face hub can be reached.
    hostfile: the nodes of a run, as for DeepSpeed's launcher: also see whether each line is right,
        and whether each host answers within 20 s and has the same software.
    ssh: ask the hosts over ssh, as the launcher does; --no-ssh looks only whether their names are
        known and they answer, for a command that is given on every node.
    port: without ssh, where the first host will wait for the others (--master_port).
    json: print JSON instead of a table.
    """

    runs: Path = Path("runs")
    registry: str = ""
    hub: bool = False
    hostfile: Path | None = None
    ssh: bool = True
    port: int = PORT
    json: bool = False

    def __post_init__(self) -> None:
        require_in("[1, 65535]", port=self.port)


def doctor(config: DoctorConfig) -> int:
    """Print the table; in plain text, since it is asked where torch alone is installed as well."""
    registry = config.registry or os.environ.get("DISTFORGE_REGISTRY_URI", "")
    versions = _versions()
    checks = [
        _check_kernels(),
        *check_machine(config.runs, registry or str(config.runs / "registry.db"), hub=config.hub),
    ]
    if config.hostfile is not None:
        checks += check_hosts(config.hostfile, ssh=config.ssh, port=config.port)
    missing = [check for check in checks if check.state == "missing"]
    if config.json:
        found = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"well": not missing, "checks": found, "versions": versions}, indent=2))
    else:
        print("\n".join(_table(versions, checks)))
    return _MISSING_SOMETHING if missing else 0


def _table(versions: dict[str, str], checks: list[Check]) -> list[str]:
    width = max(map(len, [*versions, *(check.name for check in checks)]))
    lines = [f"{part:{width}}  {found}" for part, found in versions.items()]
    lines.append("")
    for check in checks:
        lines.append(f"{check.name:{width}}  {_MARKS[check.state]}: {check.found}")
        if check.remedy:
            lines.append(f"{'':{width}}  -> {check.remedy}")
    return lines


def _versions() -> dict[str, str]:
    """What is installed, and what "auto" stands for here."""
    device = _device()
    rows = {"python": platform.python_version()}
    rows |= {name: installed_version(name) for name in _PACKAGES}
    rows |= {f"extra {name}": _extra(name) for name in EXTRAS}
    cuda = device.type == "cuda"
    rows["device"] = torch.cuda.get_device_name(0) if cuda else platform.processor() or "cpu"
    rows["dtype 'auto'"] = resolve_dtype("auto", device)
    rows["ns_dtype 'auto'"] = str(fastest_dtype(device)).removeprefix("torch.")
    chosen = backend()
    rows["kernels"] = f"{chosen.name}: {chosen.reason}"
    rows |= {f"native {key}": str(value) for key, value in build_info().items()}
    return rows | {"native part": rows.pop("native native")}


def _check_kernels() -> Check:
    device = _device()
    problems = {name: problem for name, problem in check_kernels(device).items() if problem}
    if not problems:
        return Check("kernels", "ok", f"compute on {device} what the reference does")
    found = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    remedy = "these run as plain torch, which is slower; see docs/machines.md for the build"
    return Check("kernels", "note", found, remedy)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _extra(name: str) -> str:
    missing = missing_modules(name)
    if not missing:
        return "installed"
    return f"without {', '.join(missing)}; pip install 'distforge[{name}]'"
