"""Whether the nodes of a hostfile can train together, looked at before DeepSpeed's launcher does.

Over ssh each node is asked what the launcher would ask of it: the same Python in the same folder.
Without, as where the command is given on every node (``--no_ssh``), only whether its name is known
and whether it answers at all.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distforge
from distforge.commands.health import Check, installed_version
from distforge.deadlines import DeadlinePassed, within
from distforge.errors import first_line
from distforge.training.hostfile import Host, read_hostfile

# For the answer of a host, and DeepSpeed's default port.
SECONDS, PORT = 20.0, 29500
_AT_ONCE = 64
_SSH_FAILED = 255
# ssh's words for a name that nobody knows, and how a host that answers says what it has.
_UNKNOWN, _ANSWER = "resolve hostname", "distforge says "
# Asked of a host without importing torch, which takes seconds.
_QUESTION = f"""
import importlib.metadata as installed, json, os, platform, distforge
def version(name):
    try: return installed.version(name)
    except installed.PackageNotFoundError: return "not installed"
gpus = "/proc/driver/nvidia/gpus"
print({_ANSWER!r} + json.dumps({{
    "machine": platform.node() + open("/proc/sys/kernel/random/boot_id").read(),
    "gpus": len(os.listdir(gpus)) if os.path.isdir(gpus) else 0,
    "distforge": distforge.__version__,
    "torch": version("torch"),
    "deepspeed": version("deepspeed"),
}}))
"""


def check_hosts(
    path: Path, *, ssh: bool, port: int = PORT, seconds: float = SECONDS
) -> Iterator[Check]:
    """The file, then each of its hosts.

    Args:
        path: the hostfile.
        ssh: whether hosts are asked over ssh, as by DeepSpeed's launcher.
        port: without ssh, where a host should answer, if only that nothing listens there yet.
        seconds: for each host; up to 64 are asked at once.
    """
    found = read_hostfile(path)
    for fault in found.faults:
        yield Check("hostfile", "missing", fault.found, fault.remedy)
    if not found.hosts:
        return
    if not found.faults:
        ranks = sum(host.slots for host in found.hosts)
        yield Check("hostfile", "ok", f"{len(found.hosts)} hosts, {ranks} ranks")
    if ssh:
        yield from _check_programs(len(found.hosts))
        if shutil.which("ssh") is None:
            return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        if not ssh:
            yield from pool.map(lambda host: check_port(host, port, seconds), found.hosts)
            return
        answers = list(pool.map(lambda host: ask_by_ssh(host, seconds), found.hosts))
    here = versions_here()
    for host, answer in zip(found.hosts, answers, strict=True):
        yield answer if isinstance(answer, Check) else compare(host, answer, here)
    yield from _doubled(found.hosts, answers)


def ask_by_ssh(host: Host, seconds: float) -> dict[str, Any] | Check:
    """What the host says of itself, or why it says nothing."""
    words = [sys.executable, "-c", _QUESTION]
    if "PYTHONPATH" in os.environ:  # which the launcher passes on as well
        words = ["env", f"PYTHONPATH={os.environ['PYTHONPATH']}", *words]
    remote = f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(seconds))}"]
    try:
        done = subprocess.run(
            ["ssh", *options, host.name, remote],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        remedy = f"see that it runs, and that `ssh {host.name} true` gets in"
        return _missing(host, f"did not answer ssh within {seconds:g} s", remedy)
    for line in done.stdout.splitlines():  # its shell may say something of its own as well
        if line.startswith(_ANSWER):
            return dict(json.loads(line.removeprefix(_ANSWER)))
    said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    if done.returncode != _SSH_FAILED:
        remedy = f"have this folder there too, and distforge for {sys.executable}, as it is here"
        return _missing(host, f"cannot run what runs here: {said}", remedy)
    remedy = f"have `ssh {host.name} true` get in without a question: its key known, and yours"
    if _UNKNOWN in said:
        remedy = "correct the name, or have this machine know it (/etc/hosts, ~/.ssh/config)"
    return _missing(host, f"cannot be reached: {said}", remedy)


def compare(host: Host, there: dict[str, Any], here: dict[str, str]) -> Check:
    """Whether a host that answered suits its line and this machine."""
    unlike = [
        f"{name} is {there[name]} there and {mine} here"
        for name, mine in here.items()
        if _plain(there[name]) != _plain(mine)
    ]
    if unlike:
        return _missing(host, "; ".join(unlike), "install the same versions on all nodes")
    gpus = there["gpus"]
    if 0 < gpus < host.slots:
        found = f"line {host.line} wants {host.slots} ranks on {gpus} GPUs"
        return _missing(host, found, f"write slots={gpus}, or fewer")
    return Check(_name(host), "ok", f"the same software as here, {gpus} GPUs")


def check_port(host: Host, port: int, seconds: float) -> Check:
    """Whether a host's name is known here, and whether it answers, if only with a refusal."""
    name = host.name.rpartition("@")[2]
    unknown = "correct the name, or have this machine know it (/etc/hosts)"
    try:
        within(seconds, lambda: socket.getaddrinfo(name, port), f"the address of {name}")
    except DeadlinePassed:
        return _missing(host, f"nobody says within {seconds:g} s where it is", unknown)
    except (OSError, UnicodeError) as error:
        return _missing(host, f"its name is not known here ({first_line(error)})", unknown)
    try:
        with socket.create_connection((name, port), timeout=seconds):
            return Check(_name(host), "ok", f"something listens at its port {port}")
    except ConnectionRefusedError:
        return Check(_name(host), "ok", f"answers; nothing listens at its port {port} yet")
    except OSError as error:
        found = f"port {port} was not reached within {seconds:g} s ({first_line(error)})"
        remedy = "see that it runs, and that no firewall closes that port"
        return _missing(host, found, remedy)


def versions_here() -> dict[str, str]:
    """What has to be alike on all nodes, as this machine has it."""
    others = {name: installed_version(name) for name in ("torch", "deepspeed")}
    return {"distforge": distforge.__version__, **others}


def _check_programs(hosts: int) -> Iterator[Check]:
    """What DeepSpeed's launcher starts for several hosts."""
    wanted = {"ssh": "openssh-client", **({"pdsh": "pdsh"} if hosts > 1 else {})}
    for program, package in wanted.items():
        if shutil.which(program) is None:
            remedy = (
                f"install it (Debian's package is {package}), or start the command on every node "
                "with --no_ssh (docs/machines.md)"
            )
            yield Check(program, "missing", "not installed, and the launcher needs it", remedy)


def _doubled(hosts: tuple[Host, ...], answers: list[dict[str, Any] | Check]) -> Iterator[Check]:
    """Two names of one machine, whose ranks would share its GPUs."""
    seen: dict[str, Host] = {}
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, Check):
            continue
        first = seen.setdefault(answer["machine"], host)
        if first is not host:
            found = f"lines {first.line} and {host.line} name one machine"
            yield _missing(host, found, f"keep {first.name} or {host.name}, with all its slots")


def _plain(version_: str) -> str:
    """Without the local part: builds for other systems compute the same."""
    return version_.partition("+")[0]


def _missing(host: Host, found: str, remedy: str) -> Check:
    return Check(_name(host), "missing", found, remedy)


def _name(host: Host) -> str:
    return f"host {host.name}"
