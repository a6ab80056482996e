"""Ray: start it here, or connect to it, and only to one that does not serve strangers.

Whoever reaches a Ray cluster can run any code on it. One started here listens on the loopback
interface alone; any other must ask for a token.

When Ray's own processes on the learner's node die (raylet, or the cluster's GCS for a minute), Ray
ends the learner's process with status 1, without an exception: resume from the last checkpoint.
Actors and other nodes may die; the pool goes on.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distforge.errors import InputError, first_line
from distforge.rollouts.config import RolloutConfig

# For a connection, and for a cluster to say who it is; Ray itself would try for minutes.
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 60.0

_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_MANUAL = "https://docs.ray.io/en/latest/ray-security/token-auth.html"
_PROBE = """
import sys, traceback, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("ADMITTED", ray.get_runtime_context().gcs_address)
except Exception:  # Ray hides its AuthenticationError in the text of another one
    print("REFUSED" if "AuthenticationError" in traceback.format_exc() else "BROKEN")
    raise
"""


@contextmanager
def connected(config: RolloutConfig) -> Iterator[None]:
    """Ray is connected inside. A connection that this process had before is used and kept.

    Raises:
        InputError: Ray is not installed, no cluster answers at ``config.address``, it is open to
            anybody, it is too small for the actors, or the process is connected to another one.
    """
    ray = _import_ray(config)
    mine = not ray.is_initialized()
    if mine:
        with _own_signal_handlers():
            _connect(ray, config)
    try:
        if not mine or not config.address:
            _require_expected(config.address, ray.get_runtime_context().gcs_address)
        _require_resources(ray.cluster_resources(), config)
        yield
    finally:
        if mine:
            ray.shutdown()


def require_private(address: str) -> None:
    """Refuse a cluster that is dead, or that serves other machines without a token.

    Another process asks, because Ray may hang at what is no cluster; and it asks without a token,
    because who shows one cannot tell whether it was needed.

    Raises:
        InputError: no answer within `PROBE_SECONDS`, or an answer where a token should be wanted.
    """
    # A refusal is final, but Ray would ask twenty times.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"no Ray cluster answers at {address!r} within {PROBE_SECONDS:.0f} s; see "
            "`ray status` there"
        ) from None
    answer, _, resolved = done.stdout.strip().partition(" ")
    if answer == "REFUSED":
        return
    if answer != "ADMITTED":
        reason = done.stderr.strip().rpartition("\n")[2]
        raise InputError(
            f"cannot connect to the Ray cluster at {address!r}: {reason}; see `ray status` there, "
            "or leave address empty to have one on this machine"
        )
    if not is_loopback(resolved.rpartition(":")[0]):
        raise InputError(
            f"the Ray cluster at {resolved} requires no token, so anybody who reaches it can run "
            f"code there; start it with RAY_AUTH_MODE=token (see {_MANUAL})"
        )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine as only itself can reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _import_ray(config: RolloutConfig) -> Any:
    # Read when Ray is imported; where it is already, its own default for a new cluster holds.
    if not config.address and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


@contextmanager
def _loopback_only(ray: Any) -> Iterator[None]:
    """A cluster started inside listens on 127.0.0.1, unless the environment says otherwise.

    Ray's switch for that, which works on Linux too, is read from the environment when Ray is
    imported: perhaps long ago, and for a cluster elsewhere, which the switch would break.
    """
    if _LOOPBACK_SWITCH in os.environ:
        yield
        return
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[_LOOPBACK_SWITCH] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[_LOOPBACK_SWITCH]


def _connect(ray: Any, config: RolloutConfig) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    if not config.address:
        with _loopback_only(ray):
            ray.init(
                address="local",
                num_cpus=max(1, math.ceil(config.num_actors * config.cpus_per_actor)),
                object_store_memory=config.object_store_mib << 20,
                include_dashboard=False,
                # Workers that Ray starts ahead would lack the environment that actors ask for.
                _system_config={"prestart_worker_first_driver": False},
                **quiet,
            )
        return
    if config.address != "auto":
        _require_answer(config.address)
    require_private(config.address)
    try:
        ray.init(address=config.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"cannot connect to the Ray cluster at {config.address!r}: {error}; see `ray status` "
            "there, and RAY_AUTH_TOKEN or ~/.ray/auth_token here if it requires a token"
        ) from error


def _require_expected(address: str, connected_to: str) -> None:
    """The process may have been connected before, or Ray may listen elsewhere than it should."""
    if address in ("auto", connected_to):
        return
    if address:
        raise InputError(
            f"address is {address!r}, but this process is connected to the Ray cluster at "
            f"{connected_to}; leave address empty to use that one"
        )
    if not is_loopback(connected_to.rpartition(":")[0]):
        require_private(connected_to)


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"address is {address!r}; expected 'host:port', 'auto' or nothing")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {first_line(error)}; start one with "
            "`ray start --head`, or leave address empty to have one on this machine"
        ) from error


def _require_resources(has: dict[str, float], config: RolloutConfig) -> None:
    for name, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        wanted = config.num_actors * each
        if wanted > has.get(name, 0.0):
            raise InputError(
                f"{config.num_actors} actors want {wanted:g} {name}, and the Ray cluster has "
                f"{has.get(name, 0.0):g}; lower num_actors or {name.lower()}s_per_actor"
            )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects; the run that stops on it wants it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) is not before:
        signal.signal(signal.SIGTERM, before)
