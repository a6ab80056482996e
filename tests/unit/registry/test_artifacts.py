"""Copies on a server, over real HTTP to a server of a few lines that can fail as it is told."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

from distforge.errors import InputError
from distforge.registry import RegistryUnavailable
from distforge.registry.artifacts import download, upload, verify_copy
from distforge.registry.contents import measure_directory
from distforge.registry.manifest import identify, verify_manifest
from distforge.registry.records import ModelVersion
from distforge.registry.store import Store

ROOT = "/api/2.0/mlflow-artifacts/artifacts"
PLACE = "/7/run/artifacts"


class Server(ThreadingHTTPServer):
    """Keeps what it is sent; cuts off the file that `cut` names after a third of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.status = 200
        self.cut = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def name(self) -> str:
        return unquote(self.path.removeprefix(f"{ROOT}{PLACE}/model/"))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status == 200:
            self.server.sent.append(self.name())
            if self.name() == self.server.cut:
                content = content[: len(content) // 3]
            self.server.files[self.name()] = content
        self.answer(b"{}", 500 if self.name() == self.server.cut else self.server.status)

    def do_GET(self) -> None:
        content = self.server.files[self.name()]
        if self.name() == self.server.cut:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 3])
            return
        self.answer(content, self.server.status)

    def answer(self, content: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def store(server: Server) -> Store:
    def listed(_run: str, folder: str) -> list[Any]:
        prefix = folder.removeprefix("model").lstrip("/")
        return [
            SimpleNamespace(path=f"model/{name}", is_dir=False, file_size=len(content))
            for name, content in server.files.items()
            if name.startswith(prefix)
        ]

    return Store(lambda: SimpleNamespace(list_artifacts=listed), server.url)


RUN = SimpleNamespace(
    info=SimpleNamespace(run_id="run", artifact_uri=f"mlflow-artifacts:{PLACE}", status="RUNNING")
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 12_000)  # three pieces
    (made / "sub" / "a b#ü.txt").write_text("words")
    return made


def version(model: Path) -> ModelVersion:
    return ModelVersion("baked/1", model, identify(measure_directory(model)), "", uploaded=True)


def test_there_and_back_in_pieces(
    store: Store, server: Server, model: Path, tmp_path: Path
) -> None:
    pieces: list[None] = []
    uri = upload(store, RUN, model, measure_directory(model), lambda: pieces.append(None))
    assert uri == f"mlflow-artifacts:{PLACE}/model"
    assert len(pieces) > 10
    assert verify_copy(store, version(model), RUN) == version(model).manifest
    copy = download(store, version(model), RUN, tmp_path / "copy", None)
    assert verify_manifest(copy) == version(model).manifest
    assert (copy / "sub" / "a b#ü.txt").read_text() == "words"


def test_verifying_keeps_no_file(
    store: Store, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(store, RUN, model, measure_directory(model))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    largest: list[int] = []
    genuine = Store.request

    def request(self: Store, *arguments: Any, **options: Any) -> Any:
        largest.append(sum(f.stat().st_size for f in scratch.rglob("*") if f.is_file()))
        return genuine(self, *arguments, **options)

    monkeypatch.setattr(Store, "request", request)
    verify_copy(store, version(model), RUN)
    assert len(largest) == 4  # the manifest and three files
    assert max(largest) == 0


def test_a_flipped_byte_on_the_server_is_named(store: Store, server: Server, model: Path) -> None:
    upload(store, RUN, model, measure_directory(model))
    content = server.files["model.safetensors"]
    server.files["model.safetensors"] = content[:-1] + b"\0"
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 .* on the server"):
        verify_copy(store, version(model), RUN)


def test_an_upload_that_was_cut_off_is_gone_on_with(
    store: Store, server: Server, model: Path
) -> None:
    server.cut = "model.safetensors"
    with pytest.raises(RegistryUnavailable):
        upload(store, RUN, model, measure_directory(model))
    assert server.sent == ["config.json", "model.safetensors"]
    server.cut = ""
    upload(store, RUN, model, measure_directory(model))
    assert server.sent[2:] == ["model.safetensors", "sub/a b#ü.txt", "manifest.json"]
    assert verify_copy(store, version(model), RUN) == version(model).manifest


@pytest.mark.parametrize(
    "status, kind",
    [
        (401, RegistryUnavailable),
        (403, RegistryUnavailable),
        (503, RegistryUnavailable),
        (413, InputError),
    ],
)
def test_what_the_server_answers_is_said(
    store: Store, server: Server, model: Path, status: int, kind: type[Exception]
) -> None:
    server.status = status
    with pytest.raises(kind, match=r"the registry 'http://127\.0\.0\.1") as caught:
        upload(store, RUN, model, measure_directory(model))
    assert type(caught.value) is kind


def test_a_download_that_breaks_off_leaves_nothing(
    store: Store, server: Server, model: Path, tmp_path: Path
) -> None:
    upload(store, RUN, model, measure_directory(model))
    server.cut = "model.safetensors"
    with pytest.raises(RegistryUnavailable, match=r"stopped sending model\.safetensors"):
        download(store, version(model), RUN, tmp_path / "copy", None)
    assert not (tmp_path / "copy").exists()


def test_a_manifest_of_the_servers_cannot_write_elsewhere(
    store: Store, server: Server, model: Path, tmp_path: Path
) -> None:
    upload(store, RUN, model, measure_directory(model))
    entries = json.loads(server.files["manifest.json"])
    entries[0]["path"] = "../outside"
    server.files["manifest.json"] = json.dumps(entries).encode()
    with pytest.raises(InputError, match="not a relative path inside"):
        download(store, version(model), RUN, tmp_path / "copy", None)
    assert not (tmp_path / "outside").exists()
