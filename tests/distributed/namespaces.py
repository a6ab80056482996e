"""Two nodes on this machine: network namespaces with a cable between them, over real TCP.

Each has a loopback interface, an address and counters of its own, and may see its own directory
where the other sees another one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Mounts a directory of the node over one that all see, then becomes the command.
_WITH_OWN = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


@dataclass
class Node:
    """``name`` of the namespace, ``interface`` of its end of the cable, ``address`` of that.

    own: directories that this node sees its own of: (its own, where it sees it).
    """

    name: str
    interface: str
    address: str
    own: tuple[Path, Path] | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Run ``command`` on the node, from the repository's root."""
        words = ["ip", "netns", "exec", self.name]
        if self.own is not None:
            words += ["sh", "-c", _WITH_OWN, "sh", *map(str, self.own)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "GLOO_SOCKET_IFNAME": self.interface,
            **options.pop("environment", {}),
        }
        process = subprocess.Popen(
            [*words, *command], cwd=ROOT, env=environment, text=True, **options
        )
        self.started.append(process)
        return process

    def sent(self) -> int:
        """Bytes that went out over the cable so far, headers included."""
        shown = _ip("-n", self.name, "-s", "-j", "link", "show", "dev", self.interface)
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])

    def pids(self) -> list[int]:
        """Of all processes on the node."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Everything on the node at once, as when its power fails."""
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue


def allowed() -> bool:
    """Whether this process may make network namespaces and cables between them."""
    try:
        with two_nodes():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """The nodes, gone afterwards with all that runs on them."""
    tag = f"df{os.getpid()}"
    nodes = tuple(
        Node(f"{tag}{end}", f"v{tag}{end}", f"10.77.0.{i}") for i, end in ((1, "a"), (2, "b"))
    )
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        one, two = nodes
        _ip("link", "add", one.interface, "type", "veth", "peer", "name", two.interface)
        for node in nodes:
            _ip("link", "set", node.interface, "netns", node.name)
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.name, "link", "set", node.interface, "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield one, two
    finally:
        for node in nodes:
            if Path("/run/netns", node.name).exists():
                node.kill()
                for process in node.started:
                    process.wait(60)
                _ip("netns", "del", node.name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout
