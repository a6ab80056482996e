"""What was found out about the kernels on this machine's devices, kept from process to process.

One JSON file in the user's cache, by device, torch and build of the kernels. Losing it costs the
time to find out again; so does a home that cannot be written.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from distforge import durable, locks
from distforge.errors import InputError

log = logging.getLogger("distforge.ops")

_LOCK_SECONDS = 5.0


def path() -> Path:
    """``distforge/kernels.json`` under XDG_CACHE_HOME, or ``~/.cache`` where that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache, "distforge", "kernels.json")


@functools.cache
def identity(device: torch.device) -> str:
    """What a finding holds for: the device's kind, torch, and these very kernels."""
    name = device.type
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        name = f"{torch.cuda.get_device_name(device)} {capability}"
    return f"{name}, torch {torch.__version__}, kernels {_build()}"


@functools.cache
def _build() -> str:
    spec = importlib.util.find_spec("distforge._C")
    if spec is None or spec.origin is None:
        return "none"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def read(device: torch.device) -> dict[str, str]:
    """What is known of a device, by question; empty where nothing can be read."""
    return _read_all().get(identity(device), {})


def remember(device: torch.device, found: Mapping[str, str]) -> dict[str, str]:
    """Add findings; of two answers to a question the one that was there first stands.

    Returns:
        All that is known of the device now, also where it could not be written down.
    """
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        lock = path().with_suffix(".lock")
        with locks.exclusive(lock, what=f"{path()}", wait=_LOCK_SECONDS):
            everything = _read_all()
            known = {**found, **everything.get(identity(device), {})}
            durable.write_json(path(), {**everything, identity(device): known})
            return known
    except (OSError, InputError) as error:
        log.info("what was found out about the kernels is not kept: %s", error)
        return {**found, **read(device)}


def _read_all() -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError):
        content = json.loads(path().read_text(encoding="utf-8"))
        if isinstance(content, dict) and all(map(_is_finding, content.values())):
            return content
    return {}


def _is_finding(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(answer, str) for answer in value.values())
