"""Step 1's accuracy goes on with the model it was measured of, and with no other."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.models.loading import Champion, load_champion
from distforge.models.weight_files import weights_sha256
from distforge.quietstar.baked_record import BakedRecord, read_baked_record
from distforge.reports.step1_summary import Step1Summary
from tests.handed_over import save_model
from tests.unit.reports.run_directory import make_summary


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of step 1, as far as step 2 looks at it."""
    save_model(tmp_path / "model")
    record(tmp_path)
    return tmp_path


def record(run: Path, **changes: object) -> None:
    known = {
        "accuracy_overall": 0.947,
        "questions": 2000,
        "dataset_sha256": "d" * 64,
        "champion_sha256": "c" * 64,
        "model_sha256": weights_sha256(run / "model"),
    }
    (run / "summary.json").write_text(json.dumps(make_summary() | known | changes))


def baked(run: Path) -> Champion:
    return load_champion(str(run / "model"))


def test_the_record_is_carried_with_what_it_was_measured_on(run: Path, caplog) -> None:
    caplog.set_level(logging.WARNING, "distforge.quietstar")
    found = read_baked_record(baked(run), None)
    assert found == BakedRecord(0.947, 2000, "d" * 64, "c" * 64)
    assert found.as_fields()["baked_accuracy"] == 0.947
    assert caplog.messages == []
    # The same, stated as it is printed.
    assert read_baked_record(baked(run), 0.9472) == found


def test_a_stated_accuracy_that_the_record_contradicts_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"baked_accuracy is 0\.95, but .* measured 0\.9470"):
        read_baked_record(baked(run), 0.95)


@pytest.mark.parametrize(
    "break_, reason",
    [
        (lambda run: (run / "summary.json").unlink(), "has no summary.json of step 1 next to it"),
        (lambda run: (run / "summary.json").write_text("{"), "is not JSON"),
        (lambda run: record(run, step=2), "step is 2"),
        (lambda run: record(run, model_sha256=""), "does not say which weights"),
        (lambda run: record(run, model_sha256="e" * 64), "is of other weights (eeeeeeeeeeee)"),
        (lambda run: record(run, accuracy_overall=None), "has no accuracy"),
    ],
)
def test_without_a_record_of_these_weights_it_is_what_is_stated_or_unknown(
    run: Path, caplog, break_, reason: str
) -> None:
    caplog.set_level(logging.WARNING, "distforge.quietstar")
    break_(run)
    assert math.isnan(read_baked_record(baked(run), None).accuracy)
    [message] = caplog.messages
    assert reason in message
    assert f"distforge evaluate --model {run / 'model'} --data FILE" in message
    assert read_baked_record(baked(run), 0.95) == BakedRecord(0.95)


def test_an_old_record_stays_readable() -> None:
    old = make_summary()
    assert "model_sha256" not in old
    assert Step1Summary.parse(json.dumps(old)).model_sha256 == ""
