"""The token of a registry that is served on this machine, and how this user's clients find it.

A loopback address is open to every user of the machine, and a login node has many. So the server
asks for a token there too: it lies in its folder, readable by its user alone, and its place is
noted in that user's own state directory, by host and port.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from distforge import durable

TOKEN_VARIABLE = "DISTFORGE_REGISTRY_TOKEN"
TOKEN_USER = "distforge"
TOKEN_FILE = "token"
SECRET_MODE = 0o600
_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_OWN_WAYS = (_USER, _PASSWORD, "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH")

_log = logging.getLogger(__name__)
_lent: dict[str, str] = {}


def make_token(directory: Path) -> str:
    """The token of the server that keeps its state in ``directory``; made when absent."""
    file = directory / TOKEN_FILE
    if not file.exists():
        durable.write_text(file, secrets.token_urlsafe(32) + "\n", mode=SECRET_MODE)
    return file.read_text("utf-8").strip()


@contextmanager
def announced(port: int, directory: Path) -> Iterator[None]:
    """While the block runs, `lend_token` finds the token of the server on ``port``."""
    note = _note(port)
    try:
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.write_text(note, f"{directory / TOKEN_FILE}\n", mode=SECRET_MODE)
    except OSError as error:
        _log.warning("clients cannot find the token (%s); set %s for them", error, TOKEN_VARIABLE)
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink()


def lend_token(uri: str) -> None:
    """Have MLflow use the token for ``uri``, if that is on this machine's loopback and the user has
    set no credentials: that of DISTFORGE_REGISTRY_TOKEN, or of a server of this user's.

    For any other address a token that was lent before is taken back: it is no one else's to see.
    """
    for name, value in _lent.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _lent.clear()
    if any(os.environ.get(name) for name in _OWN_WAYS) or not _is_loopback(uri):
        return
    token = os.environ.get(TOKEN_VARIABLE, "") or _found(urlsplit(uri).port or 80)
    if token:
        _lent.update({_USER: TOKEN_USER, _PASSWORD: token})
        os.environ.update(_lent)


def _found(port: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        file = Path(_note(port).read_text("utf-8").strip())
        if file.stat().st_uid == os.getuid():
            return file.read_text("utf-8").strip()
    return ""


def _note(port: int) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", "") or Path.home() / ".local" / "state")
    # A home directory that several hosts share has the servers of all of them.
    return state / "distforge" / "registries" / f"{socket.gethostname()}-{port}"


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
