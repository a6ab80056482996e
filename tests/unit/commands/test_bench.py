"""`distforge bench`: what it runs, what it says where one does not end, and the page of results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.commands import bench

SCRIPT = """
import json, subprocess, sys
if {hangs}:
    print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    while True: pass
rows = [dict(work="{name}: w", ours=2.0, peer="p", peer_value=1.0, unit="s", ratio=2.0)]
assert sys.argv[1] == "--quick"
json.dump(dict(rows=rows), open(sys.argv[3], "w"))
sys.exit({status})
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Benchmarks that measure nothing: one that ends, one that fails, one that hangs."""
    for name, hangs, status in (("zero", 0, 0), ("kernels", 0, 1), ("s5", 1, 0)):
        text = SCRIPT.format(name=name, hangs=hangs, status=status)
        (tmp_path / f"bench_{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path)
    return tmp_path


def test_rows_of_what_ended_and_reasons_for_the_rest(scripts: Path, capsys) -> None:
    output = scripts / "out"
    words = ["bench", "--only", "zero", "kernels", "s5", "--output", str(output)]
    assert main([*words, "--minutes", "0.05"]) == 3
    said = capsys.readouterr().out
    assert "zero: w" in said
    assert "2.00" in said
    assert "kernels: ended with status 1, see" in said
    assert "s5: stopped after 1 s" in said
    helper = int((output / "s5.log").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(helper)], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z")
    assert main([*words[:3], "--output", str(output)]) == 0


def test_what_is_no_benchmark_and_where_there_are_none(monkeypatch, tmp_path: Path, capsys) -> None:
    assert main(["bench", "--only", "speed"]) == 2
    assert "only names 'speed'" in capsys.readouterr().err
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path / "none")
    assert main(["bench"]) == 2
    assert "not part of an installed distforge" in capsys.readouterr().err


def test_every_name_is_a_script_of_the_checkout() -> None:
    assert all((bench.BENCHMARKS / f"bench_{name}.py").is_file() for name in bench.NAMES)


def test_the_page_of_results_is_what_the_files_say(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    assert main(["bench", "--page", str(page)]) == 0
    committed = Path(__file__).parents[3] / "docs" / "results.md"
    assert page.read_text("utf-8") == committed.read_text("utf-8")
    rows = [
        len(json.loads(path.read_text("utf-8"))["rows"])
        for path in (bench.BENCHMARKS / "results").glob("*.json")
    ]
    table_lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert len(table_lines) == sum(rows) + len(rows)
