"""``distforge doctor --hostfile``: hosts that answer, and what is said of those that do not."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.commands import hosts
from distforge.commands.health import Check
from distforge.training.hostfile import Host

# Each host answers in its own way; "here" and "alias" are this machine, asked by a real shell.
SSH = """#!/bin/sh
case "$*" in *BatchMode=yes*) ;; *) echo "would ask for a password" >&2; exit 255 ;; esac
while [ $# -gt 2 ]; do shift; done
versions='"distforge": "0.1.0", "torch": "2.13.0+cu130", "deepspeed": "0.19.8"'
case $1 in
  here | alias) exec sh -c "$2" ;;
  old) echo 'welcome'; echo 'distforge says {"machine": "o", "gpus": 8, "distforge": "0.1.0",
    "torch": "2.9.1", "deepspeed": "0.19.8"}' | tr -d '\\n'; echo ;;
  few) echo "distforge says {\\"machine\\": \\"f\\", \\"gpus\\": 2, $versions}" ;;
  gpu) echo "distforge says {\\"machine\\": \\"g\\", \\"gpus\\": 8, $versions}" ;;
  unknown) echo "ssh: Could not resolve hostname $1: Name or service not known" >&2; exit 255 ;;
  locked) echo "$1: Permission denied (publickey)." >&2; exit 255 ;;
  bare) echo "sh: 1: cd: can't cd to $PWD" >&2; exit 2 ;;
  silent) exec tail -f /dev/null ;;
esac
"""
HERE = {"distforge": "0.1.0", "torch": "2.13.0+cpu", "deepspeed": "0.19.8"}
EXPECTED = {
    "here": ("ok", "the same software as here", ""),
    "gpu": ("ok", "the same software as here, 8 GPUs", ""),
    "old": ("missing", "torch is 2.9.1 there and 2.13.0+cpu here", "install the same versions"),
    "few": ("missing", "line 4 wants 8 ranks on 2 GPUs", "write slots=2, or fewer"),
    "unknown": ("missing", "cannot be reached: ssh: Could not resolve", "correct the name"),
    "locked": ("missing", "cannot be reached: locked: Permission denied", "`ssh locked true` get"),
    "bare": ("missing", "cannot run what runs here: sh: 1: cd: can't", "have this folder there"),
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ssh and pdsh, as stand-ins."""
    for name in ("ssh", "pdsh"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SSH, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def hostfile(folder: Path, *names: str) -> Path:
    (folder / "hosts").write_text("".join(f"{name} slots=8\n" for name in names), encoding="utf-8")
    return folder / "hosts"


def test_each_host_is_asked_and_explained(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "versions_here", lambda: HERE)
    path = hostfile(tmp_path, *EXPECTED)
    overall, *checks = hosts.check_hosts(path, ssh=True)
    assert overall == Check("hostfile", "ok", "7 hosts, 56 ranks")
    assert [check.name for check in checks] == [f"host {name}" for name in EXPECTED]
    for check, (state, found, remedy) in zip(checks, EXPECTED.values(), strict=True):
        assert check.state == state, check
        assert found in check.found
        assert remedy in check.remedy


def test_a_host_that_says_nothing_is_given_up(programs: Path, tmp_path: Path) -> None:
    *_, found = hosts.check_hosts(hostfile(tmp_path, "silent"), ssh=True, seconds=0.5)
    assert (found.state, found.found) == ("missing", "did not answer ssh within 0.5 s")


def test_two_names_of_one_machine(programs: Path, tmp_path: Path) -> None:
    *_, one, two, doubled = hosts.check_hosts(hostfile(tmp_path, "here", "alias"), ssh=True)
    assert (one.state, two.state) == ("ok", "ok"), (one, two)
    assert (doubled.state, doubled.found) == ("missing", "lines 1 and 2 name one machine")


def test_what_the_launcher_needs_is_asked_for(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "pdsh").unlink()
    monkeypatch.setenv("PATH", str(programs))
    found = list(hosts.check_hosts(hostfile(tmp_path, "gpu", "few"), ssh=True))
    assert [check.name for check in found] == ["hostfile", "pdsh", "host gpu", "host few"]
    assert "Debian's package is pdsh" in found[1].remedy
    (programs / "ssh").unlink()
    found = list(hosts.check_hosts(hostfile(tmp_path, "gpu"), ssh=True))
    assert [check.name for check in found] == ["hostfile", "ssh"]


def test_the_command_ends_with_1_and_prints_the_line(
    programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("here slots=1\nnode-2 slots=two\n", encoding="utf-8")
    words = ["doctor", "--runs", str(tmp_path), "--hostfile", str(tmp_path / "hosts"), "--json"]
    assert main(words) == 1
    told = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert told["hostfile"]["found"].startswith("line 2 is 'node-2 slots=two': slots is 'two'")
    assert told["host here"]["state"] == "ok"
    assert main(["doctor", "--port", "70000"]) == 2
    assert "port is 70000" in capsys.readouterr().err


def test_without_ssh_a_host_answers_if_only_with_a_refusal(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        port = taken.getsockname()[1]
        found = hosts.check_port(Host("me@127.0.0.1", 1, 1), port, 5)
        assert found.state == "ok"
        assert f"nothing listens at its port {port} yet" in found.found
        taken.listen()
        _, found = hosts.check_hosts(hostfile(tmp_path, "127.0.0.1"), ssh=False, port=port)
        assert (found.state, found.found) == ("ok", f"something listens at its port {port}")


def test_without_ssh_names_and_addresses_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    found = hosts.check_port(Host("127.0.0.1", 1, 1), 29500, 3)
    assert found.state == "missing"
    assert "port 29500 was not reached within 3 s (No route to host)" in found.found

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = hosts.check_port(Host("nodee-1", 1, 1), 29500, 3)
    assert "its name is not known here" in found.found
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: never.wait(60))
    found = hosts.check_port(Host("nodee-1", 1, 1), 29500, 0.1)
    never.set()
    assert found.found == "nobody says within 0.1 s where it is"
