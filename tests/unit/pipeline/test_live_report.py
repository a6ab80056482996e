"""The report that keeps up with a run."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.pipeline.live_report import LiveReport
from tests.unit.reports.run_directory import make_run

REFRESH = 'http-equiv="refresh"'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text("[champion]\n")
    (tmp_path / "run" / "summary.json").rename(tmp_path / "summary.json")
    return tmp_path / "run"


@pytest.fixture
def server(run: Path) -> Iterator[LiveReport]:
    with LiveReport(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: LiveReport, path: str = "", host: str = "") -> tuple[int, str]:
    request = urllib.request.Request(server.address + path)
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_the_page_keeps_up_with_the_run(server, run, tmp_path) -> None:
    _, first = get(server)
    assert "the last record is of step 40," in first
    assert REFRESH in first
    assert REFRESH not in (run / "report.html").read_text("utf-8")
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines[-1].replace('"step": 40', '"step": 41') + "\n")
    assert "the last record is of step 41," in get(server, "report.html")[1]
    (tmp_path / "summary.json").rename(run / "summary.json")
    _, last = get(server)
    assert "has not ended" not in last
    assert REFRESH not in last


def test_only_the_page_is_served_and_only_to_this_machine(server, run) -> None:
    assert get(server, "metrics.jsonl")[0] == 404
    assert get(server, "../summary.json")[0] == 404
    assert get(server, host="evil.example.org")[0] == 403
    assert server.server_address[0] == "127.0.0.1"


def test_what_cannot_be_followed_is_refused(server, tmp_path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        LiveReport(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be used"):
        LiveReport(tmp_path / "run", server.server_port)
