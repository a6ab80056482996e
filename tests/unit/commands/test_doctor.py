"""``distforge doctor``: what it finds here, and what it says where something is wrong."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from distforge.cli import main
from distforge.commands import health

GIB = 2**30


def test_this_machine_is_well_and_every_note_has_a_remedy(tmp_path, capsys):
    assert main(["doctor", "--runs", str(tmp_path / "runs"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is True
    names = [check["name"] for check in told["checks"]]
    assert {"kernels", "driver", "disk", "file locks", "Ray", "W&B", "registry"} <= {*names}
    assert "hub" not in names
    assert all(bool(check["remedy"]) == (check["state"] != "ok") for check in told["checks"])
    assert told["versions"]["torch"] == torch.__version__
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_missing_to_this_user(tmp_path):
    tmp_path.chmod(0o500)
    assert health.check_disk(tmp_path, lambda _: 100 * GIB).state == "missing"


def test_what_is_missing_ends_with_1_and_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(health, "_free", lambda _: GIB // 2)
    assert main(["doctor", "--runs", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("disk"))
    assert "MISSING: 0.5 GiB free in" in lines[place]
    assert lines[place + 1].strip().startswith("-> a run of a 135M model takes")


@pytest.mark.parametrize(
    ("free", "state"), [(GIB // 2, "missing"), (5 * GIB, "note"), (90 * GIB, "ok")]
)
def test_how_much_disk_is_enough(free, state, tmp_path):
    assert health.check_disk(tmp_path / "a" / "b", lambda folder: free).state == state


@pytest.mark.parametrize(("free", "state"), [(None, "note"), (64 * 2**20, "note"), (2 * GIB, "ok")])
def test_how_much_shared_memory_is_enough(free, state):
    assert health.check_shared_memory(free).state == state


def test_a_gpu_that_torch_cannot_use_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert health.check_driver(None).state == "ok"
    assert "torch has no CUDA" in health.check_driver("550.1").found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = health.check_driver("470.2")
    assert found.state == "missing"
    assert "update the driver" in found.remedy


def test_a_gpu_that_others_fill_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GIB, 24 * GIB))
    found = health.check_gpu_memory(1)
    assert (found.name, found.state, found.found) == (
        "memory of GPU 1",
        "note",
        "3.0 GiB of 24.0 GiB free",
    )


def test_locks_that_exclude_nobody_are_found(tmp_path, monkeypatch):
    assert health.check_locks(tmp_path).state == "ok"
    monkeypatch.setattr(health.fcntl, "flock", lambda *_: None)
    assert health.check_locks(tmp_path).state == "missing"

    def none_there(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(health.fcntl, "flock", none_there)
    found = health.check_locks(tmp_path)
    assert (found.state, "No locks available" in found.found) == ("note", True)


def test_wandb_online_needs_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert health.check_wandb(True).state == "ok"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert health.check_wandb(True).state == "missing"
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert health.check_wandb(True).state == "ok"
    assert health.check_wandb(False).state == "note"


class _Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path in ("/health", "/") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_registry_and_the_hub_are_asked_where_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with HTTPServer(("127.0.0.1", 0), _Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", f"{address}/")
        try:
            assert health.check_registry(address).state == "ok"
            database = f"postgresql://u@127.0.0.1:{server.server_port}/m"
            assert health.check_registry(database).state == "ok"
            assert health.check_hub().state == "ok"
            monkeypatch.setattr(_Health, "status", 500)
            assert health.check_hub().state == "note"
        finally:
            server.shutdown()
    with socket.socket() as taken:  # bound and not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for uri in (f"http://127.0.0.1:{port}", f"postgresql://u@127.0.0.1:{port}/m"):
            found = health.check_registry(uri)
            assert (found.state, "cannot be reached" in found.found) == ("note", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert health.check_hub().state == "note"


def test_a_registry_file_need_not_exist(tmp_path: Path):
    assert health.check_registry(str(tmp_path / "new" / "registry.db")).state == "ok"
    assert "which the first run makes" in health.check_registry(str(tmp_path / "r.db")).found
