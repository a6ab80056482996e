"""Hostile input to registry, server, manifest and hand-off: every one refused, nothing written.

The lists are the point of this file: what is refused can be read here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.handoff.to_phase4 import find_faults
from distforge.registry import ModelRegistry, Session, verify_manifest, write_manifest
from distforge.registry.manifest import MANIFEST_NAME
from distforge.registry.server import ServeConfig, read_password
from distforge.registry.store import store_uri
from tests.faults.registry_processes import make_model
from tests.faults.registry_server import PASSWORD

NAMES = [
    "",
    "../champion",
    "champion/../../etc",
    "/etc/passwd",
    "champion\0",
    "champion\n",
    "a' OR 1=1 --",
    "a`b",
    "-rf",
    ".hidden",
    "é",
    "$(touch x)",
    "a" * 201,
    None,
    7,
]
VERSIONS = ["", "champion", "champion/0", "champion/-1", "champion/1/2", "../1", "champion/1\n", 3]
URIS = [
    "",
    "/",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "ftp://127.0.0.1/registry",
    "s3://bucket/registry",
    "databricks",
    "http://",
    "http://admin:secret@127.0.0.1:5000",
    "postgresql://admin:secret@127.0.0.1/registry",
    "javascript://alert",
]
PATHS = [
    "../outside",
    "/etc/hostname",
    "sub/../../outside",
    "..",
    "a//b",
    "a\\..\\b",
    "a\0b",
    "./config.json",
    MANIFEST_NAME,
]
SOURCES = [
    "file:///etc",
    "file:///etc/passwd",
    "/etc",
    "../../../etc",
    "mlflow-artifacts:/../../etc",
    "mlflow-artifacts:/1/../../../etc/artifacts/model",
    "mlflow-artifacts:/1/0123456789abcdef0123456789abcdef/artifacts/model/../../..",
    "mlflow-artifacts:/1/0123456789abcdef0123456789abcdef/artifacts/model\n/etc",
    "http://169.254.169.254/latest/meta-data",
    "s3://somebody-elses-bucket/model",
    "runs:/0123456789abcdef0123456789abcdef/../../etc",
    "dbfs:/etc",
    "x-mlflow-artifacts:/1/0123456789abcdef0123456789abcdef/artifacts/model",
]
ARTIFACT_PATHS = [
    "../../../etc/passwd",
    "..%2F..%2F..%2Fetc%2Fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "/etc/passwd",
    "..%5c..%5cetc%5cpasswd",
    "%252e%252e%252fetc%252fpasswd",
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return ModelRegistry(tmp_path_factory.mktemp("registry") / "registry.db")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names(registry: ModelRegistry, tmp_path: Path, name) -> None:
    model = make_model(tmp_path / "model", "x")
    for call in (
        lambda: registry.register_model(3, 1, name, model),
        lambda: registry.find(7 if name is None else name),  # None asks for all
        lambda: registry.by_alias(name, "champion"),
        lambda: registry.by_alias("champion", name),
        lambda: registry.register_model(3, 1, "champion", model, {name: "x"}),
        lambda: registry.register_model(3, 1, "champion", model, {"metrics": {name: 1.0}}),
        lambda: registry.gc(name, 1),
        lambda: registry.record_session(Session(name, 3, 1, "/run", "host", "RUNNING")),
    ):
        with pytest.raises(InputError):
            call()
    assert registry.find() == []
    assert not (model / MANIFEST_NAME).exists()


@pytest.mark.parametrize("version", VERSIONS, ids=repr)
def test_versions(registry: ModelRegistry, tmp_path: Path, version) -> None:
    for call in (
        lambda: registry.get(version),
        lambda: registry.promote(version, "champion"),
        lambda: registry.verify(version),
        lambda: registry.download(version, tmp_path / "copy"),
        lambda: registry.lineage(version),
        lambda: registry.record_handoff(version, "phase4", "PASS"),
    ):
        with pytest.raises(InputError):
            call()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("uri", URIS, ids=repr)
def test_addresses(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if uri == "databricks":  # a plain word is a file here, never MLflow's own keyword
        assert store_uri(uri) == f"sqlite:///{tmp_path}/databricks"
        return
    with pytest.raises(InputError) as refusal:
        ModelRegistry(uri)
    assert "secret" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_manifests_that_point_elsewhere(registry: ModelRegistry, tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").write_text("x")
    model = make_model(tmp_path / "model", "x")
    entry = {"path": path, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (model / MANIFEST_NAME).write_text(json.dumps([entry]))
    with pytest.raises(InputError):
        verify_manifest(model)
    with pytest.raises(InputError):
        registry.register_model(3, 1, "hostile", model)
    assert registry.find() == []


def test_a_registered_directory_that_turned_hostile(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry.db")
    model = make_model(tmp_path / "model", "x")
    version = registry.register_model(3, 1, "baked_reasoning", model)
    (tmp_path / "secret").write_text("of another user")
    [manifest] = (tmp_path / "registry.manifests").iterdir()
    whole = manifest.read_text(encoding="utf-8")
    entry = {"path": "../secret", "bytes": 15, "sha256": "0" * 64}
    manifest.write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="not a relative path inside"):
        registry.download(version, tmp_path / "copy")
    manifest.write_text(whole)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(tmp_path / "secret")
    # What the link leads to is not what was registered, and no copy of it is left.
    with pytest.raises(InputError, match="has 15 bytes but"):
        registry.download(version, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


class Hostile:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hand_off_with_code_in_it(config: Path, tmp_path: Path) -> None:
    for name in ("modeling_x.py", "pytorch_model.bin", "state.pkl", "extra/kernel.so"):
        model = Path(shutil.copytree(config.parent / "champion", tmp_path / name.split(".")[0]))
        ran = tmp_path / "ran"
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(pickle.dumps(Hostile(ran)))
        write_manifest(model)
        assert any(f"{name} can hold code" in fault for fault in find_faults(model))
        assert not ran.exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"host": "0.0.0.0"}, "which others reach"),
        ({"host": "::"}, "which others reach"),
        ({"host": "192.168.0.1", "allowed_hosts": ("models.example.org",)}, "which others reach"),
        ({"host": "example.org"}, "expected an IP address"),
        ({"host": "127.0.0.1; rm -rf /"}, "expected an IP address"),
        ({"port": 0}, "expected 1 to 65535"),
        ({"allowed_hosts": ("*",)}, "without '\\*' alone"),
        ({"allowed_hosts": ("a,*",)}, "expected host names"),
        ({"user": "a\nb"}, "user is"),
        ({"user": "%(here)s"}, "user is"),
        ({"backend": "mysql://x"}, "expected sqlite"),
        ({"backend": "file:///etc"}, "expected sqlite"),
        ({"backend": "postgresql://a:b@h/d"}, "has a password in it"),
        ({"artifacts": "file:///etc"}, "expected s3"),
        ({"password_file": Path("/nonexistent")}, "cannot be read"),
        ({"password_file": Path("/dev/null")}, "has 0 characters"),
    ],
)
def test_unsafe_servers(settings: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTFORGE_REGISTRY_PASSWORD", raising=False)
    with pytest.raises(InputError, match=message):
        read_password(ServeConfig(**settings))


@pytest.mark.parametrize("password", ["", "short", "password123"])
def test_weak_passwords(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTFORGE_REGISTRY_PASSWORD", password)
    with pytest.raises(InputError, match="password"):
        read_password(ServeConfig(host="0.0.0.0", allowed_hosts=("models.example.org",)))


def request(
    url: str, path: str, body: dict | None = None, login: str = f"admin:{PASSWORD}", **headers: str
) -> tuple[int, str]:
    """Status and text of a bare HTTP request: no client of ours or MLflow's is in between."""
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    made = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(made, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_sources_elsewhere_make_no_version(server: str) -> None:
    api = "/api/2.0/mlflow"
    assert request(server, f"{api}/registered-models/create", {"name": "aim"})[0] == 200
    for source in SOURCES:
        body = {"name": "aim", "source": source}
        status, text = request(server, f"{api}/model-versions/create", body)
        assert status == 400, (source, text)
    _, text = request(server, f"{api}/model-versions/search")
    assert "aim" not in text


def test_artifact_paths_out_of_the_server(server: str) -> None:
    for path in ARTIFACT_PATHS:
        status, text = request(server, f"/api/2.0/mlflow-artifacts/artifacts/{path}")
        assert status >= 400, path
        assert "root:" not in text, path


def test_strangers_see_nothing(server: str) -> None:
    for login in ("", "admin:", f"admin:{PASSWORD}x", f"nobody:{PASSWORD}", "admin:admin"):
        for path in ("/", "/api/2.0/mlflow/model-versions/search", "/api/2.0/mlflow/users/get"):
            status, _ = request(server, path, login=login)
            assert status == 401, (login, path)


def test_another_name_of_the_host_is_refused(server: str) -> None:
    """A page elsewhere that resolves its own name to 127.0.0.1 (DNS rebinding)."""
    path = "/api/2.0/mlflow/model-versions/search"
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        status, text = request(server, path, Host=host)
        assert status == 403, (host, text)
    origin = {"Origin": "https://evil.example"}
    body = {"name": "from-elsewhere"}
    status, _ = request(server, "/api/2.0/mlflow/registered-models/create", body, **origin)
    assert status == 403


def test_thirty_are_listed() -> None:
    lists = (NAMES, VERSIONS, URIS, PATHS, SOURCES, ARTIFACT_PATHS)
    assert sum(map(len, lists)) >= 30
