"""The report of the whole of phase 3, and the verdict on it, read as a browser would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from distforge.errors import InputError
from distforge.evaluation.intervals import proportion
from distforge.handoff.verdict import Verdict
from distforge.pipeline.whole_report import write_whole_report
from distforge.reports.formats import accuracy_of
from distforge.reports.pipeline_record import PipelineRecord, StageRecord, changed_settings
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.verdict_plot import draw_measures
from distforge.reports.verdict_section import verdict_section
from tests.unit.reports.html_page import Page
from tests.unit.reports.reinforcement_directory import make_rl_run, make_rl_summary
from tests.unit.reports.run_directory import HOSTILE, make_run, make_summary
from tests.unit.reports.verdicts import make_verdict

RECORD = PipelineRecord(
    step1="quick",
    step2="quick_step2",
    champion="champions/quick",
    stages={"champion": StageRecord(seconds=366.0), "step1": StageRecord(seconds=61, resumed=True)},
    settings={"seed": 7, "step2.data.difficulties": [4], "optimizer.name": HOSTILE},
    command="distforge run --config 'my file.toml'",
    host="a-machine",
    versions={"torch": "2.13.0"},
)


def make_whole(runs: Path, summary: dict[str, Any], converged: bool = True) -> Path:
    make_run(runs / "quick")
    step1 = {**make_summary(), "converged": converged, "questions": 2002}
    (runs / "quick" / "summary.json").write_text(json.dumps(step1))
    make_rl_run(runs / "quick_step2", summary)
    RECORD.write(runs / "quick")
    return runs / "quick"


def judged(outcome: str) -> dict[str, Any]:
    return {**make_rl_summary(), "verdict": outcome, "theater": make_verdict(outcome)}


@pytest.fixture(scope="module", params=["PASS", "INCONCLUSIVE"])
def whole(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Page]:
    run_dir = make_whole(tmp_path_factory.mktemp("runs"), judged(request.param))
    source = write_whole_report(run_dir).read_text("utf-8")
    return request.param, source, Page(source)


def test_the_verdict_stands_first_with_its_measures(whole: tuple[str, str, Page]) -> None:
    outcome, source, page = whole
    assert page.text["verdict"] == outcome
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings[:2] == ["The verdict", "The evidence"]
    rows = {row[0]: row[1:] for row in page.rows["measures"]}
    assert rows["ablation"] == ["0.420 [0.390, 0.440]", "> 0.02", "2,000", "yes"]
    clears = {"PASS": "yes", "INCONCLUSIVE": "unclear"}[outcome]
    assert rows["divergence of edit"][-1] == clears
    if outcome == "INCONCLUSIVE":
        assert rows["correlation"] == ["– [–, –]", "> 0.5", "0", "unclear"]
        assert "no model of equal compute" in page.text["judged"]
        assert (
            "either side of the threshold: divergence of edit, correlation." in page.text["judged"]
        )
    else:
        assert "It is not PASS" not in page.text["judged"]
    assert "one of <b>two</b>" in page.text["judged"]
    assert "1,652 held-out items, 6,608 thoughts" in page.text["judged"]
    assert "fewer than the 2,000 items" in page.text["judged"]


def test_accuracies_stand_with_n_and_their_intervals(whole: tuple[str, str, Page]) -> None:
    _, _, page = whole
    controls = {row[0]: row[1:] for row in page.rows["controls"]}
    between = proportion(round(0.82 * 1652), 1652)
    shown = f"82.0% [{100 * between.low:.1f}, {100 * between.high:.1f}]"
    assert controls["given"][0] == "accuracy, n 1,652"
    assert controls["its own thoughts"] == [shown, ""]
    assert controls["direct"][1] == "+43.6 points"
    assert list(controls)[1:] == ["its own thoughts", "direct", "no thoughts"]
    numbers = " ".join(page.text["step1-numbers"].split())
    assert "85.0% [83.4, 86.5]accuracy, baked model, n 2,002" in numbers
    assert "+21.5 points [+19.8, +23.2]gain over" in " ".join(page.text["step2-numbers"].split())


def test_how_it_was_made_and_from_what(whole: tuple[str, str, Page]) -> None:
    _, source, page = whole
    assert page.text["command"] == RECORD.command
    assert "a-machine · torch 2.13.0" in page.text["facts"]
    times = {row[0]: row[1:] for row in page.rows["times"]}
    assert times["champion"] == ["6:06", ""]
    assert times["step 1: data, baking, exam"] == ["1:01", "after a resume"]
    assert ["step2.data.difficulties", "4"] in page.rows["settings"]
    for text in (HOSTILE, "e" * 64, "baked_reasoning/3", "rl_reasoning/2"):
        assert text in page.text["lineage"]
    assert page.text["handed"] == "not handed off"
    assert "model: " in page.text["handoff"]
    assert page.addresses == ["../index.html", "report.html", "../quick_step2/report.html"]
    assert HOSTILE not in source
    assert not re.search(r"https?://|@import|url\((?!#)", source)


def test_no_page_is_wider_than_a_phone_and_all_know_the_dark(whole: tuple[str, str, Page]) -> None:
    _, source, _ = whole
    style = source[source.index("<style>") : source.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    widths = re.findall(r"minmax\(([^,()]*(?:\([^)]*\))?)", style)
    assert widths
    assert all(re.fullmatch(r"min\(\d+px, 100%\)", width) for width in widths)
    # What a plot is drawn with are the page's colors, all of which it defines twice.
    used = set(re.findall(r"var\(--(\w+)\)", source))
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    named = {name for name in used if f"--{name}:" in light}
    assert named == used
    assert {"ink", "muted", "line", "paper", "model", "target"} <= used
    assert all(f"--{name}:" in dark for name in used - {"good", "bad"})
    assert not re.search(r"(?:fill|stroke): #", source)


def test_samples_are_of_both_kinds_a_step_a_line(tmp_path: Path) -> None:
    run_dir = make_whole(tmp_path, judged("PASS"))
    sample = {"question": "1+1?", "answer": "2", "generated": "<think><step>a<step>b</think>\nx"}
    kinds = [("self_doubt", True), ("self_doubt", False), ("chain_of_thought", True)] * 9
    rows = [json.dumps({**sample, "strategy": s, "correct": c}) for s, c in kinds]
    (tmp_path / "quick_step2" / "samples.jsonl").write_text("\n".join(rows))
    text = Page(write_whole_report(run_dir).read_text("utf-8")).text["samples"]
    assert (text.count("wrong"), text.count("right")) == (4, 4)
    assert text.index("wrong") < text.index("right")
    assert "<think>\n<step>a\n<step>b</think>\nx" in text
    assert "chain of thought" in text


def test_one_that_ended_with_step_1_says_why(tmp_path: Path) -> None:
    run_dir = make_whole(tmp_path, make_rl_summary(), converged=False)
    (tmp_path / "quick_step2" / "summary.json").unlink()
    page = Page(write_whole_report(run_dir).read_text("utf-8"))
    assert page.text["verdict"] == "not converged"
    assert page.text["lead"].startswith("It ended with step 1. Not every target is met: self_doubt")
    assert "There is no model to hand over yet." in page.text["handoff"]


def test_one_that_is_still_going_says_how_far_it_is(tmp_path: Path) -> None:
    run_dir = make_whole(tmp_path, make_rl_summary())
    (tmp_path / "quick_step2" / "summary.json").unlink()
    page = Page(write_whole_report(run_dir).read_text("utf-8"))
    assert page.text["verdict"] == "unfinished"
    assert "Unfinished: step 2 has not ended yet." in page.text["lead"]
    assert "the last record is of step 60" in page.text["step2"]
    (run_dir / "summary.json").unlink()
    page = Page(write_whole_report(run_dir).read_text("utf-8"))
    assert "the last record is of step 40" in page.text["step1"]


def test_theatre_is_told_by_the_measure_that_shows_it() -> None:
    section = verdict_section(Step2Summary.parse(json.dumps(judged("THEATRE"))), "x")
    assert (section.badge.text, section.badge.tone) == ("THEATRE", "bad")
    assert section.sentence.endswith("Interval below the threshold: divergence of edit.")
    assert section.table is not None
    assert [row.met for row in section.table.rows] == [False, True, True, True]


def test_step_2_shows_its_verdict_itself(tmp_path: Path) -> None:
    make_rl_run(tmp_path / "rl", judged("PASS"))
    page = Page(write_reinforcement_report(tmp_path / "rl").read_text("utf-8"))
    assert (page.text["verdict"], page.addresses) == ("PASS", [])
    assert [row[0] for row in page.rows["measures"]][1:] == [
        "divergence of edit",
        "divergence of prediction",
        "ablation",
        "correlation",
    ]
    assert len(page.plots) == 7


@pytest.mark.parametrize("key", ["measures", "items", "controls"])
def test_what_is_no_verdict_is_named(tmp_path: Path, key: str) -> None:
    summary = judged("PASS")
    del summary["theater"][key]
    make_rl_run(tmp_path / "rl", summary)
    with pytest.raises(
        InputError, match=rf"summary\.json: theater: this is no verdict .*{key}.*; judge again"
    ):
        write_reinforcement_report(tmp_path / "rl")


def test_the_plot_has_an_interval_and_a_threshold_for_each_measure() -> None:
    record = Verdict.from_json(judged("INCONCLUSIVE")["theater"])
    axes = Figure().subplots()
    draw_measures(axes, record.measures)
    drawn = [list(line.get_xdata()) for line in axes.lines]
    assert drawn[:3] == [[0.2, 0.44], [0.32], [0.3, 0.3]]
    # Of the correlation nothing is known: its interval leaves the axis on both sides.
    low, high = axes.get_xlim()
    assert drawn[-2][0] <= low
    assert drawn[-2][1] >= high
    assert drawn[-1] == [0.5, 0.5]


def test_a_run_that_belongs_to_nothing_has_no_whole(tmp_path: Path) -> None:
    make_rl_run(tmp_path / "rl", make_rl_summary())
    with pytest.raises(InputError, match="belongs to no pipeline"):
        write_whole_report(tmp_path / "rl")


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text('{"step1": 3}')
    with pytest.raises(InputError, match=r"pipeline\.json is no record of a pipeline \(step1: "):
        PipelineRecord.read(tmp_path)


def test_settings_that_differ_are_named_by_their_dotted_keys() -> None:
    usual = {"seed": 0, "data": {"seed": 0, "levels": [1, 2]}, "more": None, "rate": 0.1}
    settings = {"seed": 0, "data": {"seed": 1, "levels": [1, 2]}, "more": {"a": 1}, "rate": 0.2}
    assert changed_settings(settings, usual) == {"data.seed": 1, "more.a": 1, "rate": 0.2}


@pytest.mark.parametrize(
    ("fraction", "count", "shown"),
    [(0.5, 0, "50.0%"), (float("nan"), 10, "–"), (1.0, 10, "100.0% [72.2, 100.0]")],
)
def test_an_accuracy_without_a_count_has_no_interval(fraction, count, shown) -> None:
    assert accuracy_of(fraction, count) == shown
