"""The report, read as a browser and an image viewer would."""

import io
import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from distforge.data.strategies import STRATEGIES
from distforge.errors import InputError
from distforge.reports.step1_plots import RunPlots
from distforge.reports.step1_report import write_report
from distforge.reports.step1_summary import Step1Summary
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from tests.unit.reports.html_page import Page
from tests.unit.reports.run_directory import HOSTILE, make_run, make_summary

TITLES = (
    "Training loss",
    "Accuracy over training",
    "Accuracy by strategy",
    "Token usage in free generations",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    directory = tmp_path_factory.mktemp("runs") / "quick"
    identity = make_run(directory)
    path = write_report(directory)
    assert path == directory / "report.html"
    return directory, identity, Page(path.read_text("utf-8"))


def test_the_verdict_and_the_numbers(made: tuple[Path, str, Page]) -> None:
    _, _, page = made
    assert page.text["verdict"] == "not converged"
    for number in ("85.0%", "20.8%", "1,234,567", "2:05"):
        assert number in page.text["numbers"]
    accuracy = {row[0]: row[1:] for row in page.rows["accuracy"]}
    assert set(accuracy) == {"strategy", "overall", *STRATEGIES}
    assert accuracy["self_doubt"] == ["–", "76.4%", "≥ 76.5%", "no"]
    assert accuracy["chain_of_thought"] == ["20.0%", "90.0%", "≥ 76.5%", "yes"]
    assert accuracy["overall"] == ["20.8%", "85.0%", "≥ 85.0%", "yes"]
    usage = {row[0]: row[1:] for row in page.rows["usage"]}
    assert usage["thinking"] == ["80.0%", "> 80.0%", "no"]
    assert usage["doubt"] == ["50.1%", "> 50.0%", "yes"]


def test_the_lineage_and_the_samples(made: tuple[Path, str, Page]) -> None:
    _, identity, page = made
    for text in (HOSTILE, "e" * 64, "baked_reasoning/3", identity):
        assert text in page.text["lineage"]
    assert page.text["samples"].count("right") == 6
    assert page.text["samples"].count("wrong") == 1
    assert "<think>self_doubt</think>\nAnswer: 2" in page.text["samples"]
    details = dict(page.rows["details"])
    assert details["dataset_sha256"] == "b" * 64


def test_it_is_self_contained_and_escaped(made: tuple[Path, str, Page]) -> None:
    directory, _, page = made
    assert "script" not in page.tags
    assert page.addresses == []
    source = (directory / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", source)
    assert HOSTILE in page.text["config"]
    assert HOSTILE not in source


def test_the_pictures_open_and_are_not_blank(made: tuple[Path, str, Page]) -> None:
    directory, _, page = made
    assert len(page.plots) == 4
    for (marks, text), title in zip(page.plots, TITLES, strict=True):
        assert marks > 10
        assert title in text
    picture = imread(io.BytesIO((directory / "report.png").read_bytes()), format="png")
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 0.05
    assert sorted(p.name for p in directory.glob("*.tmp")) == []


def test_the_curves_are_the_logged_values(made: tuple[Path, str, Page]) -> None:
    from matplotlib.figure import Figure

    directory, _, _ = made
    plots = RunPlots(
        read_metrics(directory / "metrics.jsonl"), Step1Summary.read(directory / "summary.json")
    )
    axes = Figure().subplots()
    plots.draw_loss(axes)
    curve = axes.lines[0]
    steps = [step for step in range(1, 41) if step != 7]  # The loss of step 7 was NaN.
    assert list(curve.get_xdata()) == steps
    assert list(curve.get_ydata()) == [2.0 / step for step in steps]
    axes = Figure().subplots()
    plots.draw_accuracy(axes)
    flat = {line.get_label(): line.get_ydata()[0] for line in axes.lines[2:]}
    assert flat == {"target 85%": 0.85, "champion 20.8%": 0.208}
    axes = Figure().subplots()
    plots.draw_strategies(axes)
    assert [bar.get_width() for bar in axes.patches[:2]] == [0.2, 0.9]
    assert axes.lines[0].get_xdata()[0] == 0.765


def test_a_step_logged_twice_counts_as_the_later(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    line = '{"step": %d, "time": "2026-01-01T00:00:00Z", "seconds": 1, "%s": %f}\n'
    logged = [(1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.0)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line % (step, names.TRAIN_LOSS, loss) for step, loss in logged))
    (tmp_path / "summary.json").write_text(json.dumps(make_summary()))
    axes = Figure().subplots()
    RunPlots(read_metrics(path), Step1Summary.read(tmp_path / "summary.json")).draw_loss(axes)
    assert list(axes.lines[0].get_ydata()) == [3.0, 1.5, 1.0]


def test_the_runs_own_targets_are_the_marks(tmp_path: Path) -> None:
    summary = {
        **make_summary(),
        "targets": {
            "accuracy_overall": 0.9,
            "accuracy_strategy": 0.5,
            "token_usage": {"step": 0.95},
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    targets = Step1Summary.read(tmp_path / "summary.json").targets
    assert (targets.accuracy_overall, targets.accuracy_strategy) == (0.9, 0.5)
    assert (targets.token_usage["step"], targets.token_usage["thinking"]) == (0.95, 0.8)


def test_a_bare_run_still_has_a_report(tmp_path: Path) -> None:
    summary = {
        key: value
        for key, value in make_summary().items()
        if key in ("accuracy_overall", "accuracy", "token_usage", "champion_accuracy")
    }
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "converged": True}))
    (tmp_path / "metrics.jsonl").touch()
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert page.text["verdict"] == "converged"
    assert "samples" not in page.text


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("summary.json", "{", r"summary\.json is not JSON"),
        ("summary.json", "[]", r"summary\.json must hold one JSON object"),
        ("summary.json", "{}", r"summary\.json lacks 'converged'"),
        ("summary.json", '{"converged": "yes"}', "converged is 'yes'"),
        (
            "summary.json",
            '{"converged": true, "accuracy_overall": 85}',
            r"accuracy_overall is 85; it must be a number in \[0, 1\]",
        ),
        ("metrics.jsonl", "nonsense\n", r"metrics\.jsonl, line 1"),
        ("samples.jsonl", "\n{}\n", r"samples\.jsonl, line 2 lacks"),
        ("samples.jsonl", "{\n", r"samples\.jsonl, line 1 is not JSON"),
    ],
)
def test_a_malformed_file_is_named_and_nothing_is_written(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    make_run(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        write_report(tmp_path)
    assert list(tmp_path.glob("report.*")) == []


def test_an_unknown_strategy_is_refused(tmp_path: Path) -> None:
    summary = {**make_summary(), "accuracy": {"guessing": 1.0}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="its keys must be among"):
        Step1Summary.read(tmp_path / "summary.json")


def test_the_prompted_champion_has_its_questions_and_its_interval(tmp_path: Path) -> None:
    """Where the summary says how many; one of an older version does not."""
    make_run(tmp_path)
    summary = make_summary() | {"champion_prompted_accuracy": 0.75}
    label = "champion with strategy prompts, on the validation questions"
    for count, shown in ((350, r"75\.0% \[70\.1, 79\.1\]"), (None, "75.0%")):
        more = {"champion_prompted_questions": count} if count else {}
        (tmp_path / "summary.json").write_text(json.dumps(summary | more), encoding="utf-8")
        numbers = Page(write_report(tmp_path).read_text(encoding="utf-8")).text["numbers"]
        assert re.search(rf"{shown}\s*{label}{', n 350' if count else ''}", numbers), numbers
