"""The order of the stages, with the stages themselves replaced."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from distforge.errors import InputError, RunStopped
from distforge.pipeline import Found, PipelineConfig, order, run_pipeline
from distforge.quietstar import Step2Config
from distforge.reports.pipeline_record import PipelineRecord
from distforge.training.distributed import World

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@dataclass
class Fake:
    """A stage whose output is a file; ``log`` is what was called, of all stages in order."""

    name: str
    output: Path
    log: list[str]
    misses: list[str] = field(default_factory=list)
    dies: BaseException | None = None
    found: Found | InputError | None = None

    @property
    def page(self) -> Path:
        return self.output

    def find(self) -> Found:
        if isinstance(self.found, InputError):
            raise self.found
        there = (
            Found("finished", "there") if self.output.is_file() else Found("absent", "not there")
        )
        return self.found or there

    def run(self) -> None:
        self.log.append(self.name)
        if self.dies is not None:
            raise self.dies
        self.output.write_text("made")
        self.found = None

    def missed(self) -> list[str]:
        return self.misses

    def remove(self) -> None:
        self.log.append(f"remove {self.name}")
        self.output.unlink(missing_ok=True)


class Whole:
    """Four stages that write into a directory; ``config`` puts the record there as well."""

    def __init__(self, root: Path) -> None:
        self.root, self.log, self.said = root, [], []
        self.stages = {
            name: Fake(name, root / f"{name}.made", self.log)
            for name in ("champion", "step1", "step2", "report")
        }
        self.refused: list[str] = []

    def run(self, **settings) -> order.Outcome:
        config = PipelineConfig(
            name="one", output=str(self.root / "runs"), step2=Step2Config(name="two"), **settings
        )
        self.log.clear()
        return run_pipeline(config, self.said.append, WORLD)


@pytest.fixture
def whole(monkeypatch, tmp_path):
    made = Whole(tmp_path)
    *models, report = made.stages.values()
    monkeypatch.setattr(order, "phase_3", lambda config, world: models)
    monkeypatch.setattr(order, "ReportStage", lambda runs, notes, world: report)
    monkeypatch.setattr(order, "refusals", lambda model: made.refused)
    return made


def test_the_stages_run_once_and_are_found_the_second_time(whole):
    first = whole.run()
    assert first.met
    assert whole.log == ["champion", "step1", "step2", "report"]
    assert [time.went for time in first.times] == ["made"] * 4
    second = whole.run()
    assert second.met
    assert whole.log == []
    assert [time.went for time in second.times] == ["found"] * 4
    assert whole.said[-4:] == [f"{name}: there: skipped" for name in whole.stages]
    # The time that each took is known from the first call.
    earlier = [time.earlier for time in second.times]
    assert earlier == pytest.approx([time.seconds for time in first.times], abs=0.06)


@pytest.mark.parametrize("last", ["champion", "step1", "step2", "report"])
@pytest.mark.parametrize("death", [KeyboardInterrupt(), RunStopped("told to"), OSError("full")])
def test_whatever_a_stage_dies_of_the_same_command_goes_on_with_it(whole, last, death):
    stage = whole.stages[last]
    stage.dies = death
    # What follows the models, a report, is done without where it fails.
    with (
        nullcontext() if (last, type(death)) == ("report", OSError) else pytest.raises(type(death))
    ):
        assert whole.run().met
    assert whole.log[-1] == last
    stage.dies = None
    outcome = whole.run()
    names = list(whole.stages)
    assert whole.log == names[names.index(last) :]
    assert outcome.met


@pytest.mark.parametrize(
    ("settings", "removed", "run"),
    [
        ({"force": True}, 4, ["champion", "step1", "step2", "report"]),
        ({"existing": "replace"}, 4, ["champion", "step1", "step2", "report"]),
        ({"force_from": "step1"}, 3, ["step1", "step2", "report"]),
        ({"force_from": "step2"}, 2, ["step2", "report"]),
        ({"force_from": "report"}, 1, ["report"]),
        ({"force_from": "step1", "resume": "auto"}, 0, []),
    ],
)
def test_force_makes_anew_from_a_stage_on(whole, settings, removed, run):
    whole.run()
    whole.run(**settings)
    # The last is removed first: what a kill leaves is a pipeline that ends earlier.
    expected = [f"remove {name}" for name in list(whole.stages)[::-1][:removed]]
    assert whole.log == expected + run


def test_what_started_from_something_else_is_removed_and_made_anew(whole):
    whole.run()
    whole.stages["step2"].found = Found("outdated", "from another model")
    outcome = whole.run()
    assert whole.log == ["remove step2", "step2"]
    assert [time.went for time in outcome.times] == ["found", "found", "made again", "found"]


def test_a_step_1_that_misses_ends_it_and_is_reported(whole):
    whole.stages["step1"].misses = ["step 1 did not converge"]
    for log in (["champion", "step1", "report"], []):
        outcome = whole.run()
        assert whole.log == log
        assert outcome.missed == ("step 1 did not converge",)
        assert outcome.refused is None
        assert not outcome.met
    assert outcome.model == whole.root / "runs" / "one" / "model"


@pytest.mark.parametrize(
    ("misses", "refused", "met"),
    [
        ([], [], True),
        (["the verdict is THEATRE"], ["verdict is 'THEATRE'"], False),
        ([], ["model.safetensors changed"], False),
    ],
)
def test_a_model_goes_on_where_nothing_is_missed_and_phase_4_takes_it(whole, misses, refused, met):
    whole.stages["step2"].misses, whole.refused = misses, refused
    outcome = whole.run()
    assert outcome.met is met
    assert outcome.missed == tuple(misses)
    assert outcome.refused == tuple(refused)
    assert outcome.model == whole.root / "runs" / "two" / "model"


def test_what_can_not_be_used_is_refused_and_leaves_no_directory(whole):
    whole.stages["champion"].found = InputError("champions/x holds another")
    with pytest.raises(InputError, match="holds another"):
        whole.run()
    whole.stages["champion"].found = None
    whole.stages["step1"].dies = InputError("the data hold 0 examples")
    with pytest.raises(InputError, match="0 examples"):
        whole.run()
    assert not (whole.root / "runs" / "one").exists()


def test_the_record_says_how_and_with_what_it_was_made(whole):
    whole.run(seed=7)
    record = PipelineRecord.read(whole.root / "runs" / "one")
    assert (record.step1, record.step2) == ("one", "two")
    assert record.settings == {"seed": 7}
    assert record.versions["torch"] == torch.__version__
    assert list(record.stages) == list(whole.stages)
    assert all(stage.seconds is not None for stage in record.stages.values())


def test_runs_of_one_name_are_refused():
    with pytest.raises(InputError, match="a name of its own"):
        PipelineConfig(name="same", step2=Step2Config(name="same"))


def test_a_second_step_that_is_not_there_cannot_be_forced():
    with pytest.raises(InputError, match="'step2' without a second step"):
        PipelineConfig(force_from="step2")


def test_step_2_starts_from_the_run_of_step_1_and_resumes():
    config = PipelineConfig(
        name="one", output="here", existing="replace", step2=Step2Config(name="two")
    )
    step2 = config.step2_config
    assert (step2.baked, step2.output, step2.existing) == ("here/one", "here", "resume")
    assert config.step1_config.existing == "resume"
