"""What a summary file must hold: those of earlier runs are read, wrong values are refused.

``old_runs`` holds what runs wrote when one class wrote a summary and another read it.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distforge.errors import InputError
from distforge.reports.prompt_summary import PromptSummary
from distforge.reports.step1_report import write_report
from distforge.reports.step1_summary import Step1Summary, Targets
from distforge.reports.step2_report import write_reinforcement_report
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.summary import Summary
from tests.unit.reports.html_page import Page
from tests.unit.reports.run_directory import make_summary

OLD = Path(__file__).parent / "old_runs"
OLD_RUNS = {
    "step1": Step1Summary,
    "step2": Step2Summary,
    "prompt": PromptSummary,
    "sequence": PromptSummary,
    "pursuit": PromptSummary,
}


@pytest.mark.parametrize("name", OLD_RUNS)
def test_an_old_file_is_read_and_written_as_it_was(name: str, tmp_path: Path) -> None:
    path = OLD / name / "summary.json"
    written = json.loads(path.read_text())
    summary = OLD_RUNS[name].read(path)
    summary.write(tmp_path / "summary.json")
    # What step 2 measured before its training had another name then.
    renamed = {"baked_accuracy", "baked_accuracy_by_strategy"} if name == "step2" else set()
    expected = {
        f"before{key.removeprefix('baked')}" if key in renamed else key: value
        for key, value in written.items()
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert summary.model_extra == {}


def test_old_values_are_where_they_belong() -> None:
    baked = Step1Summary.read(OLD / "step1" / "summary.json")
    assert (baked.converged, baked.token_usage["doubt"], baked.steps) == (False, 0.125, 20)
    assert baked.targets.accuracy_strategy == 0.765
    assert math.isnan(baked.prompt_kl_before)
    trained = Step2Summary.read(OLD / "step2" / "summary.json")
    assert (trained.before_accuracy, set(trained.before_accuracy_by_strategy.values())) == (0, {0})
    assert math.isnan(trained.baked_accuracy)
    filler = trained.ablations["filler"]
    assert (filler.low, filler.high, filler.is_clear) == (-0.0625, 0.0, False)
    assert filler.mean == pytest.approx(-1 / 48)
    (report,) = PromptSummary.read(OLD / "prompt" / "summary.json").reports
    assert report.conditions["prompted"].adherence == 1.0
    assert report.kl_fall == pytest.approx(0.8234399557 / 0.2304469347)
    sequence = PromptSummary.read(OLD / "sequence" / "summary.json")
    assert sequence.forgetting is not None
    assert [len(row) for row in sequence.forgetting.kl] == [2, 2, 2]
    pursuit = PromptSummary.read(OLD / "pursuit" / "summary.json").pursuit
    assert pursuit is not None
    assert len(pursuit.drift) == 2


@pytest.mark.parametrize(
    "name, write, shown",
    [
        ("step1", write_report, ["8.9%", "117,888", "0:15"]),
        ("step2", write_reinforcement_report, ["0.0%", "-2.1 points", "40"]),
    ],
)
def test_an_old_run_has_a_report(name: str, write: Any, shown: list[str], tmp_path: Path) -> None:
    run = tmp_path / name
    shutil.copytree(OLD / name, run)
    page = Page(write(run).read_text("utf-8"))
    for number in shown:
        assert number in page.text["numbers"]
    assert page.text["config"] == (OLD / name / "config.toml").read_text()


@pytest.mark.parametrize(
    "key, value, complaint",
    [
        ("accuracy_overall", True, r"accuracy_overall is True; it must be a number in \[0, 1\]"),
        ("accuracy_overall", "0.85", r"accuracy_overall is '0\.85'; it must be a number"),
        ("token_usage", {"step": 1.5}, r"token_usage\.step is 1\.5; it must be a number in"),
        ("token_usage", None, "token_usage is None; its keys must be among thinking"),
        ("targets", {"token_usage": {"step": -1}}, r"targets\.token_usage\.step is -1; it must"),
        ("steps", 4.0, r"steps is 4\.0; it must be a whole number, at least 0"),
        ("steps", True, "steps is True; it must be a whole number"),
        ("seconds", "long", "seconds is 'long'; it must be a number or null"),
        ("champion", 3, "champion is 3; it must be a valid string"),
        ("step", 2, "step is 2; it must be 1"),
    ],
)
def test_a_value_of_another_kind_is_refused(key: str, value: Any, complaint: str) -> None:
    content = json.dumps({**make_summary(), key: value})
    with pytest.raises(InputError, match=f"^run/summary.json: {complaint}"):
        Step1Summary.parse(content, "run/summary.json")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
@pytest.mark.parametrize("kind", [Step1Summary, Step2Summary, PromptSummary])
def test_a_file_that_is_no_object_is_refused(kind: type[Summary], content: str) -> None:
    with pytest.raises(InputError, match="must hold one JSON object"):
        kind.parse(content)


def test_bytes_that_are_no_text_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(InputError, match="does not exist; give the directory of a finished run"):
        Step1Summary.read(path)
    path.write_bytes(b'{"converged": "\xff"}')
    with pytest.raises(InputError, match="is not JSON"):
        Step1Summary.read(path)


def test_nan_in_a_file_was_not_measured() -> None:
    content = json.dumps({**make_summary(), "accuracy_overall": math.nan})
    assert "NaN" in content
    summary = Step1Summary.parse(content)
    assert math.isnan(summary.accuracy_overall)
    assert summary.as_json()["accuracy_overall"] is None


def test_what_a_user_added_is_kept_and_what_was_not_said_is_not_made_up() -> None:
    summary = Step1Summary.parse(json.dumps({**make_summary(), "note": ["mine", None]}))
    assert summary.as_json() == {**make_summary(), "note": ["mine", None]}
    assert summary.questions == 0


def test_a_wrong_value_or_an_unknown_name_is_never_written() -> None:
    given = Step1Summary.read(OLD / "step1" / "summary.json")
    values = {name: getattr(given, name) for name in Step1Summary.model_fields}
    assert Step1Summary(**values).as_json() == {
        **given.as_json(),
        "model_sha256": "",
        "data_note": "",
        "champion_prompted_questions": 0,
    }
    for wrong in ({"accuracy_overall": 85.0}, {"stepz": 3}, {"converged": 1}):
        with pytest.raises(ValidationError):
            Step1Summary(**{**values, **wrong})
    with pytest.raises(ValidationError):
        Targets(token_usage={"guessing": 0.5})
