"""How the ranks of a run find each other: the first node is reached, all come, all are alike.

Whatever is wrong there, every rank ends with a sentence and within a stated time, before anything
of the run is begun: torch alone would wait for minutes and tell of sockets.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import os
import socket
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

import distforge
from distforge.deadlines import DeadlinePassed, within
from distforge.errors import InputError, first_line

# Longest wait for all ranks to start, 600 s unless the environment says otherwise.
JOIN_VARIABLE = "DISTFORGE_JOIN_SECONDS"
JOIN_SECONDS = 600
# A name that is not known is a slip of the pen, or a node whose name comes when it does.
_NAME_SECONDS = 60.0
_TELL_AFTER_SECONDS = 15.0
_POLL_SECONDS = 0.2
# torch waits for ever for the answer of a service that is not its own.
_ANSWER_SECONDS = 2.0
_AGENT_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"

logger = logging.getLogger(__name__)


def join(
    rank: int, size: int, backend: str, place: tuple[str, int], patience: int, timeout: float
) -> None:
    """Enter the process group of ``size`` ranks; collective.

    Args:
        backend: "gloo" or "nccl".
        place: address and port of the first node, as the launcher was given them.
        patience: seconds for all ranks to come.
        timeout: seconds that a rank may wait for another from then on.

    Raises:
        InputError: the first node is not reached or the others do not come within ``patience``
            (a name that is not known: 60 s), two processes are the same rank, the ranks have
            unlike software, or nothing gets through between them.
    """
    where, waits = f"{place[0]}:{place[1]}", datetime.timedelta(seconds=patience)
    deadline = time.monotonic() + patience
    try:
        is_served = rank > 0 or os.environ.get(_AGENT_VARIABLE) == "True"
        _reach(*place, patience, connect=is_served)
        store = _shared_store(rank, size, patience)
        meet(store, rank, size, software(), max(1.0, deadline - time.monotonic()))
    except (dist.DistError, OSError) as error:
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {place[1]} of this machine, where the ranks are to meet, is in use; give "
                "another one to all nodes (--master_port)"
            ) from error
        raise InputError(
            f"not all of {size} ranks joined at {where} within {patience} s ({first_line(error)}); "
            "start the command on every node, with the address of the first one and a port that "
            f"the others reach, or raise {JOIN_VARIABLE}"
        ) from error
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waits)
    except RuntimeError as error:
        raise InputError(
            f"all {size} ranks joined at {where}, but cannot send to each other "
            f"({first_line(error)}); see that no firewall stands between the nodes, and name the "
            f"network interface that they share in {backend.upper()}_SOCKET_IFNAME"
        ) from error
    lasting = datetime.timedelta(seconds=timeout)
    store.set_timeout(lasting)
    _set_pg_timeout(lasting)


def _shared_store(rank: int, size: int, patience: int) -> Store:
    """That of the launcher's environment; TimeoutError where another service listens there."""
    waits = datetime.timedelta(seconds=patience)
    try:
        return within(
            patience + _ANSWER_SECONDS,
            lambda: next(iter(rendezvous("env://", rank, size, timeout=waits)))[0],
            "rendezvous",
        )
    except DeadlinePassed:
        raise TimeoutError("what listens there does not answer") from None


def software() -> dict[str, str]:
    """What has to be the same on all ranks, for equal losses and messages that fit: versions."""
    # A GPU's nodes may have builds for other systems, which compute the same.
    return {
        "distforge": distforge.__version__,
        "torch": torch.__version__.partition("+")[0],
        "deepspeed": importlib.metadata.version("deepspeed"),
    }


def meet(store: Store, rank: int, size: int, versions: dict[str, str], patience: float) -> None:
    """Wait until every rank is at ``store``, once and with the same ``versions``; collective.

    Raises:
        InputError: on every rank, for unlike versions; on the second of two that are one rank.
        torch.distributed.DistError: not all came within ``patience`` seconds.
    """
    waits = datetime.timedelta(seconds=patience)
    host = socket.gethostname()
    if store.add(f"count {rank}", 1) > 1:
        store.wait([f"who {rank}"], waits)
        other = json.loads(store.get(f"who {rank}"))["host"]
        raise InputError(
            f"two processes are rank {rank} of {size}, on {other} and on {host}; give every node "
            "a number of its own (--node_rank)"
        )
    store.set(f"who {rank}", json.dumps({"host": host, "versions": versions}))
    store.wait(["who 0"], waits)
    first = json.loads(store.get("who 0"))
    if unlike := [name for name in versions if versions[name] != first["versions"].get(name)]:
        said = "; ".join(
            f"{name} is {first['versions'].get(name)} on {first['host']} (rank 0), "
            f"{versions[name]} on {host} (rank {rank})"
            for name in unlike
        )
        store.set("unlike", f"the nodes differ in software: {said}; install the same versions")
    _all_at(store, "all came", size, waits, lambda: _absent(store, size))
    fault = store.get("unlike").decode() if store.check(["unlike"]) else ""
    # Who holds the store would take it away from those who have not looked yet.
    _all_at(store, "all know", size, waits, lambda: "a rank has ended")
    if fault:
        raise InputError(fault)


def _all_at(
    store: Store, point: str, size: int, waits: datetime.timedelta, why: Callable[[], str]
) -> None:
    """Wait until ``size`` ranks are here; DistError that says ``why`` they are not."""
    if store.add(f"{point}, counted", 1) == size:
        store.set(point, "")
    try:
        store.wait([point], waits)
    except dist.DistStoreError as error:
        raise dist.DistStoreError(why()) from error


def _absent(store: Store, size: int) -> str:
    ranks = [str(rank) for rank in range(size) if not store.check([f"who {rank}"])]
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"missing: rank {', '.join(ranks[:8])}{more}"


def _reach(address: str, port: int, patience: float, *, connect: bool) -> None:
    """Wait until ``address`` is known and, to ``connect``, until something listens there.

    Raises:
        InputError: the name is not known, see `_NAME_SECONDS`.
        OSError: nothing listens after ``patience`` seconds.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            if not connect:
                socket.getaddrinfo(address, port)
                return
            left = patience - (time.monotonic() - began)
            with socket.create_connection((address, port), max(0.1, min(5.0, left))):
                return
        except (OSError, UnicodeError) as error:
            passed = time.monotonic() - began
            is_name = isinstance(error, socket.gaierror | UnicodeError)
            if is_name and passed >= min(patience, _NAME_SECONDS):
                raise InputError(
                    f"the first node's address is {address!r}, a name that {socket.gethostname()} "
                    f"does not know ({first_line(error)}); give --master_addr a name or an address "
                    "that every node knows"
                ) from None
            if passed >= patience:
                raise
            if not told and passed >= _TELL_AFTER_SECONDS:
                told = True
                _tell(address, port, error, patience)
        time.sleep(_POLL_SECONDS)


def _tell(address: str, port: int, error: Exception, patience: float) -> None:
    said = first_line(error)
    logger.warning("waiting for %s:%d (%s), at most %g s", address, port, said, patience)
