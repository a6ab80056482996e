"""Who is given the token of a loopback registry."""

import os
import socket
import stat
from pathlib import Path

import pytest

from distforge.registry.access import announced, lend_token, make_token

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Set first, so that what a test lends is gone after it.
    for name in (USER, PASSWORD, "MLFLOW_TRACKING_TOKEN", "DISTFORGE_REGISTRY_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def lent(uri: str) -> tuple[str, str]:
    lend_token(uri)
    return os.environ.get(USER, ""), os.environ.get(PASSWORD, "")


def test_a_client_of_this_user_finds_it_while_the_server_runs(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    assert make_token(tmp_path) == token
    assert lent("http://127.0.0.1:5000") == ("", "")
    with announced(5000, tmp_path):
        [note] = (tmp_path / "state").rglob(f"{socket.gethostname()}-5000")
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        assert token not in note.read_text()
        for host in ("127.0.0.1", "localhost", "[::1]"):
            assert lent(f"http://{host}:5000") == ("distforge", token)
        assert lent("http://127.0.0.1:5001") == ("", "")
    assert lent("http://127.0.0.1:5000") == ("", "")


def test_no_other_host_is_sent_it(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    with announced(5000, tmp_path):
        assert lent("http://127.0.0.1:5000") == ("distforge", token)
        assert lent("http://models.example.org:5000") == ("", "")
        assert lent("http://10.0.0.1:5000") == ("", "")


def test_it_may_be_given_and_own_credentials_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTFORGE_REGISTRY_TOKEN", "given")
    assert lent("http://localhost:6000") == ("distforge", "given")
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, "mine")
    assert lent("http://localhost:6000") == ("me", "mine")


def test_a_token_of_another_user_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_token(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with announced(5000, tmp_path):
        assert lent("http://127.0.0.1:5000") == ("", "")


def test_a_home_that_cannot_be_written_stops_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with announced(5000, tmp_path):
        pass
    assert "set DISTFORGE_REGISTRY_TOKEN for them" in caplog.text
