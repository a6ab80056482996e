"""What a run needs of a machine, looked at one by one; each with what to do where it is not there.

Nothing here needs more than torch: `distforge doctor` is asked before the rest is installed.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import netrc
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import torch

from distforge.errors import first_line

State = Literal["ok", "note", "missing"]

HUB = "https://huggingface.co"
_GIB = 2**30
_SHM = Path("/dev/shm")
_LEAST_SHARED, _LEAST_DISK, _USUAL_DISK = _GIB, _GIB, 10 * _GIB
_SECONDS = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    state: "ok"; "note", which a run can do without; or "missing", which ends one.
    found: what there is. remedy: what to do; empty where it is "ok".
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def installed_version(package: str) -> str:
    """Of a package from PyPI, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_machine(runs: Path, registry: str, *, hub: bool) -> Iterator[Check]:
    """All checks, each as it is done.

    Args:
        runs: the folder that run directories are made in; it need not exist.
        registry: an SQLite file, or the address of a server or a database.
        hub: whether the network is tried for the Hugging Face hub.
    """
    yield check_driver(_driver())
    yield from (check_gpu_memory(index) for index in range(torch.cuda.device_count()))
    yield check_collectives()
    yield check_shared_memory(shutil.disk_usage(_SHM).free if _SHM.is_dir() else None)
    yield check_disk(runs, _free)
    yield check_locks(runs)
    yield check_ray(importlib.util.find_spec("ray") is not None)
    yield check_wandb(importlib.util.find_spec("wandb") is not None)
    yield check_registry(registry)
    if hub:
        yield check_hub()


def check_driver(driver: str | None) -> Check:
    """Whether a GPU that is there can be used. ``driver``: what nvidia-smi says; None without."""
    built = torch.version.cuda
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        found = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, driver {driver}"
        return Check("driver", "ok", found)
    if driver is None:
        return Check("driver", "ok", "no NVIDIA GPU; the CPU is used")
    if built is None:
        remedy = "install a torch that is built with CUDA (the line for it is on pytorch.org)"
        return Check("driver", "missing", f"driver {driver}, but torch has no CUDA", remedy)
    return Check(
        "driver",
        "missing",
        f"driver {driver}, but torch's CUDA {built} finds no GPU",
        "update the driver, see that CUDA_VISIBLE_DEVICES is not empty and, in a container, that "
        "it was started with --gpus all",
    )


def check_gpu_memory(index: int) -> Check:
    """How much of a GPU's memory is free."""
    free, total = torch.cuda.mem_get_info(index)
    found = f"{_gib(free)} of {_gib(total)} free"
    if free >= total / 2:
        return Check(f"memory of GPU {index}", "ok", found)
    remedy = "`nvidia-smi` lists who uses it; CUDA_VISIBLE_DEVICES chooses another GPU"
    return Check(f"memory of GPU {index}", "note", found, remedy)


def check_collectives() -> Check:
    """What several processes talk to each other by."""
    backends = torch.distributed
    if not backends.is_available():
        remedy = "install a torch with torch.distributed, or train in one process"
        return Check("collectives", "note", "torch.distributed is not built in", remedy)
    if torch.cuda.is_available():
        if backends.is_nccl_available():
            version = ".".join(map(str, torch.cuda.nccl.version()))
            return Check("collectives", "ok", f"NCCL {version}")
        several = torch.cuda.device_count() > 1
        remedy = "install a torch that is built with NCCL, or train in one process"
        return Check("collectives", "missing" if several else "note", "no NCCL", remedy)
    return Check("collectives", "ok", "gloo, for processes on CPUs")


def check_shared_memory(free: int | None) -> Check:
    """Whether actors and processes have room to share. ``free``: bytes of /dev/shm, if it is."""
    if free is not None and free >= _LEAST_SHARED:
        return Check("shared memory", "ok", f"{_gib(free)} free in {_SHM}")
    found = f"no {_SHM}" if free is None else f"{_gib(free)} free in {_SHM}"
    remedy = (
        "Ray's actors need 1 GiB of it: `docker run --shm-size 8g`, or `mount -o remount,size=8g`"
    )
    return Check("shared memory", "note", found, remedy)


def check_disk(runs: Path, free_in: Callable[[Path], int]) -> Check:
    """Whether runs can be written."""
    folder = _existing(runs)
    if not os.access(folder, os.W_OK):
        remedy = "give this user the right to write there, or set `output` to another folder"
        return Check("disk", "missing", f"{folder} cannot be written to", remedy)
    free = free_in(folder)
    found = f"{_gib(free)} free in {folder}"
    if free >= _USUAL_DISK:
        return Check("disk", "ok", found)
    remedy = "a run of a 135M model takes 3 GiB, larger ones more; free space, or set `output`"
    return Check("disk", "missing" if free < _LEAST_DISK else "note", found, remedy)


def check_locks(runs: Path) -> Check:
    """Whether a lock on a file keeps a second process out."""
    folder = _existing(runs)
    elsewhere = "keep runs on a local disk, or mount it with locks (Lustre: -o flock)"
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file, open(file.name, "rb") as second:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Check("file locks", "ok", f"work in {folder}")
            return Check("file locks", "missing", f"exclude nobody in {folder}", elsewhere)
    except PermissionError:
        return Check("file locks", "note", f"not tried: {folder} cannot be written to", elsewhere)
    except OSError as error:
        found = f"{folder} has none ({error.strerror}); distforge uses files instead"
        return Check("file locks", "note", found, elsewhere)


def check_ray(installed: bool) -> Check:
    """Whether rollouts can be generated by actors."""
    if installed:
        return Check("Ray", "ok", "installed")
    remedy = "only rollouts.num_actors > 0 needs it: pip install 'distforge[rollouts]'"
    return Check("Ray", "note", "not installed", remedy)


def check_wandb(installed: bool) -> Check:
    """Whether metrics reach Weights & Biases, where the environment says that they should."""
    mode = os.environ.get("WANDB_MODE", "") or "offline"
    if not installed:
        remedy = "metrics.jsonl has all metrics without it: pip install 'distforge[report]'"
        return Check("W&B", "note", "not installed", remedy)
    if mode != "online" or _has_wandb_key():
        return Check("W&B", "ok", mode)
    remedy = "`wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
    return Check("W&B", "missing", "online, but there is no key", remedy)


def check_registry(uri: str) -> Check:
    """Whether the registry can be reached; it is not opened."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        fault = _fault_of_page(f"{uri.rstrip('/')}/health")
        remedy = "see that `distforge registry serve` runs there; runs go on, and send later"
        return _reached("registry", uri, fault, remedy)
    if parts.scheme.startswith("postgresql"):
        fault = _fault_of_port(parts.hostname or "localhost", parts.port or 5432)
        return _reached(
            "registry", uri, fault, "see that the database runs and is open to this host"
        )
    file = Path(uri.removeprefix("sqlite:///"))
    folder = _existing(file.parent)
    if os.access(file if file.exists() else folder, os.W_OK):
        found = f"{file}" if file.exists() else f"{file}, which the first run makes"
        return Check("registry", "ok", found)
    remedy = "give this user the right to write there, or name another with --registry"
    return Check("registry", "note", f"{file} cannot be written to", remedy)


def check_hub() -> Check:
    """Whether models can be had from the hub."""
    address = os.environ.get("HF_ENDPOINT", "") or HUB
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return Check("hub", "note", "HF_HUB_OFFLINE is set", "unset it, or give directories")
    remedy = "set HTTPS_PROXY or HF_ENDPOINT, or download elsewhere and give the directory"
    return _reached("hub", address, _fault_of_page(address), remedy)


def _reached(name: str, address: str, fault: str, remedy: str) -> Check:
    if fault:
        return Check(name, "note", f"{address} cannot be reached: {fault}", remedy)
    return Check(name, "ok", f"{address} answers")


def _fault_of_page(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS):
            return ""
    except urllib.error.HTTPError as error:  # somebody is there, and that is all that was asked
        return "" if error.code in (401, 403) else first_line(error)
    except (OSError, ValueError) as error:
        return first_line(error)


def _fault_of_port(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            return ""
    except OSError as error:
        return first_line(error)


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none, or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=20, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0].strip()
    return None


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "") or "https://api.wandb.ai").hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host) is not None
    return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
