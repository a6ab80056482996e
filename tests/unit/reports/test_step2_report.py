"""The report of step 2, read as a browser and an image viewer would."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from distforge.data.strategies import STRATEGIES
from distforge.errors import InputError
from distforge.reports.step2_plots import ReinforcementPlots
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.step2_summary import Step2Summary
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from distforge.telemetry.jsonl import MetricRecord
from tests.unit.reports.html_page import Page
from tests.unit.reports.reinforcement_directory import (
    STEPS,
    make_rl_run,
    make_rl_summary,
    make_text_summary,
    rl_metrics,
)
from tests.unit.reports.run_directory import HOSTILE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    directory = tmp_path_factory.mktemp("runs") / "quick"
    identity = make_rl_run(directory, make_rl_summary())
    path = write_reinforcement_report(directory)
    assert path == directory / "report.html"
    return directory, identity, Page(path.read_text("utf-8"))


def test_what_was_reached_and_against_what(made: tuple[Path, str, Page]) -> None:
    _, _, page = made
    assert (page.text["improved"], page.text["verdict"]) == (
        "beats the baked model",
        "not judged yet",
    )
    for number in ("82.1%", "60.6%", "+21.5 points", "-1.9 points", "9,600", "106,000", "5:12"):
        assert number in page.text["numbers"]
    rows = {row[0]: row[1:] for row in page.rows["comparison"]}
    assert rows["baked model"] == ["60.6%", "+21.5 points", "[+19.8, +23.2]", "yes"]
    assert rows["shuffled thoughts"] == ["20.1%", "+62.0 points", "[+59.8, +64.1]", "yes"]
    assert rows["filler tokens"] == ["84.0%", "-1.9 points", "[-3.1, -0.8]", "no"]
    assert rows["no thoughts"] == ["–", "–", "–", ""]
    strategies = {row[0]: row[1:] for row in page.rows["strategies"]}
    assert set(strategies) == {"strategy", *STRATEGIES}
    assert strategies["self_doubt"] == ["–", "60.0%", "–", "–"]
    assert strategies["chain_of_thought"] == ["–", "60.0%", "85.0%", "+25.0 points"]


def test_lineage_details_and_samples(made: tuple[Path, str, Page]) -> None:
    directory, identity, page = made
    for text in (HOSTILE, "e" * 64, "rl_reasoning/2", identity):
        assert text in page.text["lineage"]
    details = dict(page.rows["details"])
    assert (details["best_step"], details["items"]) == ("55", "2000")
    assert "<think>1 + 1</think>" in page.text["samples"]
    assert HOSTILE in page.text["config"]
    assert HOSTILE not in (directory / "report.html").read_text("utf-8")
    assert page.addresses == []


def test_the_pictures_open_and_are_not_blank(made: tuple[Path, str, Page]) -> None:
    directory, _, page = made
    assert len(page.plots) == 6
    assert all(marks > 10 for marks, _ in page.plots)
    assert "filler tokens" in page.plots[5][1]
    picture = imread(io.BytesIO((directory / "report.png").read_bytes()), format="png")
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 0.05


def plots_of(directory: Path) -> ReinforcementPlots:
    return ReinforcementPlots(
        read_metrics(directory / "metrics.jsonl"),
        Step2Summary.read(directory / "summary.json"),
    )


def test_the_curves_are_the_logged_values(made: tuple[Path, str, Page]) -> None:
    plots = plots_of(made[0])
    axes = Figure().subplots()
    plots.draw_accuracy(axes)
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert set(curves) == {"own", "shuffled", "random", "filler", "none", "baked model 60.6%"}
    assert curves["none"] == [0.21] * 6
    assert curves["own"] == pytest.approx([0.6 + 0.22 * step / 60 for step in range(10, 61, 10)])
    assert curves["baked model 60.6%"] == [0.606, 0.606]

    figure = Figure()
    plots.draw_drift(figure.subplots())
    left, right = figure.axes
    steps = [step for step in range(1, STEPS + 1) if step != 7]  # The entropy of step 7 was NaN.
    assert list(left.lines[0].get_xdata()) == [160 * step for step in steps]
    logged = [rl_metrics(step)[names.RL_ENTROPY] for step in steps]
    assert list(left.lines[0].get_ydata()) == pytest.approx(logged)
    assert right.lines[0].get_ydata()[-1] == pytest.approx(0.04)


def test_a_rollback_is_a_line_with_its_episode(made: tuple[Path, str, Page]) -> None:
    records = read_metrics(made[0] / "metrics.jsonl")
    back = MetricRecord(30, "", 0.0, {names.RL_ROLLED_BACK_TO: 20.0})
    summary = Step2Summary.read(made[0] / "summary.json")
    for draw in ("draw_reward", "draw_accuracy", "draw_drift", "draw_thoughts", "draw_bits"):
        marked, usual = Figure().subplots(), Figure().subplots()
        getattr(ReinforcementPlots([*records, back], summary), draw)(marked)
        getattr(ReinforcementPlots(records, summary), draw)(usual)
        new = [line for line in marked.lines if line.get_linestyle() == ":"]
        assert [list(line.get_xdata()) for line in new] == [[160 * 30] * 2]
        assert len(marked.lines) == len(usual.lines) + 1
        assert [text.get_text() for text in marked.texts] == ["rolled back to episode 3,200"]
        assert not usual.texts


def test_the_ablations_are_bars_from_zero_with_their_intervals(
    made: tuple[Path, str, Page],
) -> None:
    axes = Figure().subplots()
    plots_of(made[0]).draw_ablations(axes)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.62, 0.627, -0.019])
    intervals = [list(line.get_xdata()) for line in axes.lines[:3]]
    assert intervals == [[0.598, 0.641], [0.604, 0.649], [-0.031, -0.008]]
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "+62.0 points [+59.8, +64.1]"
    assert texts[3] == "not measured"
    low, high = axes.get_xlim()
    assert low < -0.031
    assert high > 0.649


def test_a_bare_run_on_text_speaks_in_bits(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(make_text_summary()))
    (tmp_path / "metrics.jsonl").touch()
    page = Page(write_reinforcement_report(tmp_path).read_text("utf-8"))
    assert (page.text["improved"], page.text["verdict"]) == ("no gain shown", "THEATRE")
    rows = {row[0]: row[1:] for row in page.rows["comparison"]}
    gain = rows.pop("gain over the baked model")
    assert gain == ["", "+0.010 bits", "[-0.004, +0.024]", "no"]
    assert rows["trained, with thoughts"] == ["3.300 bits", "", "", ""]
    assert set(rows) == {
        "held-out items",
        "baked, with thoughts",
        "baked, without",
        "trained, with thoughts",
    }
    assert "strategies" not in page.rows
    assert "usage" not in page.rows
    assert "samples" not in page.text
    axes = Figure().subplots()
    plots_of(tmp_path).draw_final_bits(axes)
    assert [bar.get_width() for bar in axes.patches] == [3.31, 3.3, 3.35, 0.0]
    axes = Figure().subplots()
    plots_of(tmp_path).draw_bits(axes)
    assert [text.get_text() for text in axes.texts] == ["nothing logged"]
    assert axes.lines[0].get_ydata()[0] == 3.31


def test_what_was_not_measured_survives_the_file(tmp_path: Path) -> None:
    nan = math.nan
    written = {
        **make_rl_summary(),
        "improved": False,
        "gain": nan,
        "intervals": {"gain": (nan, nan)},
    }
    Step2Summary.parse(json.dumps(written)).write(tmp_path / "summary.json")
    on_disk = json.loads((tmp_path / "summary.json").read_text())
    assert on_disk["intervals"] == {"gain": [None, None]}
    read = Step2Summary.read(tmp_path / "summary.json")
    assert all(map(math.isnan, (read.gain, read.lead.mean, read.lead.low, read.lead.high)))
    assert not read.lead.is_clear


@pytest.mark.parametrize(
    "key, value, complaint",
    [
        ("improved", None, "improved is None; it must be true or false"),
        ("task", "poems", "task is 'poems'; it must be one of 'questions', 'text'"),
        ("verdict", "pass", "verdict is 'pass'"),
        ("controls", {"own": 0.8, "gold": 0.9}, "controls is .*; its keys must be among own"),
        ("controls", {"own": 82.1}, r"controls\.own is 82\.1; it must be a number in \[0, 1\]"),
        ("gain", 21.5, r"gain is 21\.5; it must be a number in \[-1, 1\]"),
        ("bits", {"baked_without": "3"}, r"bits\.baked_without is '3'"),
        ("intervals", {"gain": [0.2]}, r"intervals\.gain is \[0\.2\]; it must be a pair"),
        ("intervals", {"gain": [0.3, 0.2]}, "low at most high"),
        ("items", -1, "items is -1; it must be a whole number"),
        ("accuracy", {"guessing": 1.0}, "its keys must be among chain_of_thought"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(
    tmp_path: Path, key: str, value: Any, complaint: str
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**make_rl_summary(), key: value}))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=complaint):
        write_reinforcement_report(tmp_path)
    assert list(tmp_path.glob("report.*")) == []


@pytest.mark.parametrize("key", ["improved", "controls", "bits", "intervals", "gain", "items"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    summary = make_rl_summary()
    del summary[key]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=rf"summary\.json lacks '{key}'; run step 2 again"):
        Step2Summary.read(tmp_path / "summary.json")
