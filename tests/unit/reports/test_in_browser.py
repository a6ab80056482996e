"""Reports in a real Chromium, wide and narrow, light and dark: element boxes, not looks."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distforge.pipeline.any_report import write_any_report
from tests.shared import build_once
from tests.unit.reports.reinforcement_directory import make_rl_run, make_rl_summary
from tests.unit.reports.run_directory import make_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
OLD = Path(__file__).parent / "old_runs"
REPORTS = ("step1", "step2", "prompt", "sequence", "pursuit")

# In a frame of the width that is asked for, since a window has a least width. Whatever is in an
# element that scrolls may be wider; nothing else may.
LOOK = """<script>addEventListener("load", () => {
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect(), drawing = element.closest("svg");
    const what = `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`;
    if (!box.width || element.closest("defs")) continue;
    if (drawing && element.tagName == "text") {
      const frame = drawing.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1) found.push(`label ${what}`);
    }
    if (drawing || element.closest(".scroll")) continue;
    if (box.right > innerWidth + 1) found.push(`beyond the page: ${what}`);
    if (element.clientWidth && element.scrollWidth > element.clientWidth + 1)
      found.push(`too wide: ${what}`);
  }
  const colour = name => getComputedStyle(document.body)[name].match(/[0-9]+/g).slice(0, 3);
  const light = name => colour(name).reduce((sum, part) => sum + Number(part), 0) / 765;
  const said = {width: innerWidth, found, ink: light("color"), paper: light("backgroundColor"),
                plots: document.querySelectorAll("svg").length};
  parent.document.title = JSON.stringify(said);
})</script></body>"""


def seen(page: Path, folder: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """What the browser makes of a page."""
    inner = html.escape(page.read_text("utf-8").replace("</body>", LOOK, 1))
    frame = f'<iframe width={width} height=900 style="border:0" srcdoc="{inner}"></iframe>'
    (folder / "frame.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>nothing</title>{frame}", encoding="utf-8"
    )
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"),
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    return json.loads(html.unescape(title[1]))


def make_reports(root: Path) -> None:
    make_run(root / "step1")
    make_rl_run(root / "step2", make_rl_summary())
    for name in REPORTS[2:]:
        shutil.copytree(OLD / name, root / name)
    for name in REPORTS:
        write_any_report(root / name)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", REPORTS)
def test_nothing_overflows_or_loses_its_label(
    name: str, width: int, dark: bool, tmp_path: Path
) -> None:
    reports = build_once("reports in a browser", make_reports)
    found = seen(reports / name / "report.html", tmp_path, width, dark=dark)
    assert found["width"] == width
    assert found["found"] == []
    assert (found["ink"] > found["paper"]) == dark
    assert abs(found["ink"] - found["paper"]) > 0.5


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_what_is_too_wide_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><body><p style='width: 500px'>wide</p></body>")
    assert seen(page, tmp_path, 400, dark=False)["found"] == ["beyond the page: P  wide"]
    assert seen(page, tmp_path, 1280, dark=False)["found"] == []
