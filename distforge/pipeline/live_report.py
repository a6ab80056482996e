"""A run's report while it is going: one page on loopback, made anew when the run has logged more.

The page alone is served, not the directory: other users of the machine can reach a loopback port.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from distforge.errors import InputError
from distforge.pipeline.any_report import write_any_report
from distforge.reports.related import peek
from distforge.telemetry.jsonl import METRICS_NAME

_WATCHED = (METRICS_NAME, "summary.json", "samples.jsonl")
_SECONDS = 5
_HEAD = "<head>"


class LiveReport(HTTPServer):
    """Serves the report of a run at ``address``; `serve_forever` and `shutdown` as for any server.

    Args:
        directory: the run's.
        port: of 127.0.0.1; 0 takes a free one.

    Raises:
        InputError: there is no run in it, or the port is in use.
    """

    def __init__(self, directory: Path, port: int = 0) -> None:
        self._directory, self._seen = directory, _state(directory)
        self._page = write_any_report(directory)[0]
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}); give another"
            ) from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server_port}/"

    def html(self) -> str:
        """The page as of now; while the run goes on it loads itself again."""
        state = _state(self._directory)
        if state != self._seen:
            self._page = write_any_report(self._directory)[0]
            self._seen = state
        text = self._page.read_text("utf-8")
        if peek(self._directory):
            return text
        return text.replace(_HEAD, f'{_HEAD}<meta http-equiv="refresh" content="{_SECONDS}">', 1)


class _Handler(BaseHTTPRequestHandler):
    server: LiveReport

    def do_GET(self) -> None:
        """The page, for whoever asks this machine by its own name: no other site's script."""
        names = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        if self.headers.get("Host") not in names:
            self.send_error(403)
        elif self.path not in ("/", "/report.html"):
            self.send_error(404)
        else:
            body = self.server.html().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for every five seconds helps nobody."""


def _state(directory: Path) -> list[tuple[str, int, int]]:
    """What changes when a run has logged more."""
    files = [directory / name for name in _WATCHED]
    states = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, state.st_mtime_ns, state.st_size) for name, state in states]
