"""``distforge report`` on whatever a directory can be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.reports.run_index import write_run_index
from tests.unit.reports.html_page import Page
from tests.unit.reports.reinforcement_directory import make_rl_run, make_rl_summary
from tests.unit.reports.run_directory import make_run

OLD = Path(__file__).parent / "old_runs"


def report(path: Path) -> Page:
    assert main(["report", str(path)]) == 0
    return Page((path / "report.html").read_text("utf-8"))


def unfinished(directory: Path, config: str) -> None:
    (directory / "summary.json").unlink()
    (directory / "config.toml").write_text(config)


def test_a_run_that_is_still_going_says_so_at_its_top(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    unfinished(tmp_path / "one", "[champion]\n")
    page = report(tmp_path / "one")
    assert page.text["unfinished"] == "unfinished"
    assert "This run has not ended: the last record is of step 40, at 20" in page.text["lead"]
    assert [marks > 10 for marks, _ in page.plots] == [True, True]
    make_rl_run(tmp_path / "two", make_rl_summary())
    unfinished(tmp_path / "two", "[episodes]\n")
    page = report(tmp_path / "two")
    assert "step 60" in page.text["lead"]
    assert ["Reward" in text for _, text in page.plots] == [True, False, False, False]


def test_a_run_that_has_reported_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('prompt = ["a.txt"]\n')
    page = report(tmp_path)
    assert "nothing is reported yet" in page.text["lead"]
    assert page.plots == []


@pytest.mark.parametrize("name", ["prompt", "sequence", "pursuit"])
def test_a_prompt_bake_has_a_report_too(tmp_path: Path, name: str) -> None:
    shutil.copytree(OLD / name, tmp_path / name)
    page = report(tmp_path / name)
    summary = json.loads((OLD / name / "summary.json").read_text())
    reports = summary["reports"]
    assert len(page.rows["conditions"]) == 1 + sum(len(r["conditions"]) for r in reports)
    for bake in reports:
        assert f"{bake['kl_before']:.4f} → {bake['kl_after']:.4f}" in page.text["numbers"]
    assert ("forgetting" in page.rows) is bool(summary.get("forgetting"))


@pytest.mark.parametrize(
    ("path", "said"),
    [("absent", "is not a directory"), ("empty", "is no run of distforge and holds none")],
)
def test_what_is_no_run_is_one_clear_error(tmp_path: Path, capsys, path: str, said: str) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    assert main(["report", str(tmp_path / path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list((tmp_path / "empty").iterdir()) == [tmp_path / "empty" / "inner"]


def test_the_index_has_all_runs_the_newest_first(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "old")
    make_rl_run(tmp_path / "new", {**make_rl_summary(), "verdict": "PASS"})
    make_run(tmp_path / "going")
    unfinished(tmp_path / "going", "[champion]\n")
    make_run(tmp_path / "broken")
    (tmp_path / "broken" / "summary.json").write_text("{")
    (tmp_path / "notes").mkdir()
    shutil.copytree(OLD / "prompt", tmp_path / "prompt")
    for age, name in enumerate(("new", "going", "old", "prompt", "broken")):
        for file in (tmp_path / name).iterdir():
            os.utime(file, (1e9 - 1000 * age, 1e9 - 1000 * age))
    report(tmp_path / "old")
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    page = Page((tmp_path / "index.html").read_text("utf-8"))
    rows = {row[0]: row[1:] for row in page.rows["runs"][1:]}
    assert list(rows) == ["new", "going", "old", "prompt", "broken"]
    assert rows["new"][:3] == ["step 2", "finished", "2001-09-09 01:46"]
    assert rows["new"][3:] == ["82.1% [80.4, 83.7]", "+21.5 points", "PASS", "5:12", "–"]
    assert rows["going"][1].startswith("unfinished: the last record is of step 40")
    assert rows["old"][3:7] == ["85.0%", "–", "–", "2:05"]
    assert rows["prompt"][0] == "prompt bake"
    assert rows["broken"][1].startswith("unreadable: ")
    assert page.addresses == ["old/report.html"]


def test_an_empty_directory_has_an_index_that_says_so(tmp_path: Path) -> None:
    assert "0 runs" in write_run_index(tmp_path).read_text()
