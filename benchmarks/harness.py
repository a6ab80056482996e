"""What every benchmark shares: rows with a ratio, the machine, a table, a JSON file."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from distforge import durable

if TYPE_CHECKING:
    from distforge.baking import Step1Config

_PART_SECONDS = 3600.0


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio`` > 1 when ours is better, whichever way the unit points."""

    work: str
    ours: float
    peer: str
    peer_value: float
    unit: str
    ratio: float


def arguments(description: str) -> argparse.ArgumentParser:
    """``--quick`` and ``--json FILE``, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short run that shows it works")
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    return parser


def step1_config(path: Path) -> Step1Config:
    """Step 1's settings from a file that may describe the whole pipeline."""
    # Here, for the benchmarks of kernels run where torch alone is installed.
    from distforge.baking import Step1Config
    from distforge.cli import COMMANDS
    from distforge.config import load_config

    return load_config(Step1Config, path, [], ignore=COMMANDS["bake"].ignore)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        name = models[0].partition(":")[2].strip() if models else name
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


@contextmanager
def work_directory(given: Path | None) -> Iterator[Path]:
    """Where parts are kept: the one that was given, or one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        work = given or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        yield work


def measure_parts(parts: Mapping[str, Sequence[str]], work: Path, jobs: int) -> dict[str, Any]:
    """Run this benchmark again for each part, in a process of its own with one thread.

    Args:
        parts: arguments of each part's command line, by its name. A part writes what it measured
            with `keep_part`; what is kept from an earlier call is not measured again.
        work: where it is kept.
        jobs: so many parts at once.

    Raises:
        RuntimeError: a part failed, or took over an hour. The others are stopped.
    """
    waiting = {name: given for name, given in parts.items() if not _kept(work, name).exists()}
    running: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = next(iter(waiting))
                command = [sys.executable, sys.argv[0], *waiting.pop(name)]
                command += ["--work", str(work), "--json", str(work / "unused")]
                running[name] = subprocess.Popen(command, env=environment)
            name, process = next(iter(running.items()))
            if process.wait(timeout=_PART_SECONDS):
                raise RuntimeError(f"{name} ended with status {process.returncode}")
            del running[name]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {name: json.loads(_kept(work, name).read_text(encoding="utf-8")) for name in parts}


def keep_part(found: Mapping[str, Any], work: Path, name: str) -> None:
    """Write what the part ``name`` of `measure_parts` measured."""
    durable.write_json(_kept(work, name), found, indent=1)


def _kept(work: Path, name: str) -> Path:
    return work / f"{name}.json"


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, where it is installed: kernels need torch alone."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "deepspeed", "distforge"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def publish(rows: Sequence[Row], path: Path, **extra: Any) -> None:
    """Print the rows and write them, with machine and versions, to ``path``."""
    table = Table("work", "ours", "peer", "its value", "unit", "ratio")
    for row in rows:
        table.add_row(
            row.work,
            f"{row.ours:.4g}",
            row.peer,
            f"{row.peer_value:.4g}",
            row.unit,
            f"{row.ratio:.2f}",
        )
    Console(width=140).print(table)
    result = {"machine": machine(), "versions": versions(), "rows": [asdict(r) for r in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_json(path, result | extra)
