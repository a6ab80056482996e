"""What a stage takes for its output, and what it refuses; no model is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distforge.baking import Step1Config
from distforge.champion.make import ChampionConfig, unfinished
from distforge.config import config_sha256
from distforge.errors import InputError
from distforge.pipeline.stages import ChampionStage, RunStage
from distforge.registry import write_manifest
from distforge.training.distributed import World

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
IDENTITY = "a" * 64


class Step:
    """A `RunStage` over a directory; ``inputs`` are those of today, ``origin`` the summary's."""

    def __init__(self, directory: Path, made: bool = True) -> None:
        self.directory = directory
        self.inputs = {"baked model": "m1", "data": "d1"}
        self.origin = "m1"
        self.stage = RunStage(
            "step2",
            directory,
            IDENTITY,
            lambda: self.inputs,
            made,
            lambda path: (self.origin, []),
            self.write,
            WORLD,
        )

    def write(self) -> None:
        (self.directory / "config.sha256").write_text(IDENTITY + "\n")
        (self.directory / "model").mkdir()
        (self.directory / "model" / "model.safetensors").write_bytes(b"weights")
        write_manifest(self.directory / "model")
        (self.directory / "summary.json").write_text("{}")


@pytest.fixture
def step(tmp_path):
    made = Step(tmp_path / "run")
    made.stage.run()
    return made


def test_nothing_there_is_made_and_then_found(tmp_path):
    step = Step(tmp_path / "run")
    assert step.stage.find().state == "absent"
    step.stage.run()
    assert json.loads((step.directory / "inputs.json").read_text()) == step.inputs
    assert step.stage.find().state == "finished"


@pytest.mark.parametrize("change", ["flip", "cut", "add", "manifest"])
def test_a_changed_model_is_refused_with_its_file_and_the_remedy(step, change):
    model = step.directory / "model"
    weights = model / "model.safetensors"
    if change == "flip":
        weights.write_bytes(b"weightz")
    elif change == "cut":
        weights.write_bytes(b"weight")
    elif change == "add":
        (model / "more.bin").write_bytes(b"")
    else:
        (model / "manifest.json").unlink()
    named = {"add": "more.bin", "manifest": "manifest.json"}.get(change, "model.safetensors")
    with pytest.raises(InputError, match=rf"{named}.*--force-from step2"):
        step.stage.find()
    assert weights.exists()


def test_a_run_of_another_configuration_is_refused(step):
    (step.directory / "config.sha256").write_text("b" * 64 + "\n")
    with pytest.raises(InputError, match=r"another configuration.*--force-from step2"):
        step.stage.find()


@pytest.mark.parametrize("finished", [True, False])
def test_another_model_than_it_started_from_makes_it_outdated(step, finished):
    if not finished:
        (step.directory / "summary.json").unlink()
    step.inputs = {**step.inputs, "baked model": "m2"}
    found = step.stage.find()
    assert found.state == "outdated"
    assert "another baked model" in found.why


def test_other_data_or_a_given_model_that_changed_is_refused(step, tmp_path):
    step.inputs = {**step.inputs, "data": "d2"}
    with pytest.raises(InputError, match=r"another data than is there.*--force-from step2"):
        step.stage.find()
    given = Step(tmp_path / "given", made=False)
    given.stage.run()
    given.inputs = {"baked model": "m2", "data": "d1"}
    with pytest.raises(InputError, match="another baked model"):
        given.stage.find()


def test_a_step_that_was_called_by_itself_is_found_by_its_summary(step):
    (step.directory / "inputs.json").unlink()
    assert step.stage.find().state == "finished"
    step.origin = "m0"
    assert step.stage.find().state == "outdated"


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(step):
    (step.directory / "summary.json").unlink()
    found = step.stage.find()
    assert (found.state, found.why) == (
        "unfinished",
        f"{step.directory} resumes from its beginning",
    )
    for name in ("step_9", "step_10", "step_11.tmp"):
        (step.directory / "checkpoints" / name).mkdir(parents=True)
    assert step.stage.find().why.endswith("resumes from step 10")


def test_only_a_run_is_removed(step, tmp_path):
    foreign = Step(tmp_path / "foreign")
    foreign.directory.mkdir()
    (foreign.directory / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not a run of distforge, so it is not removed"):
        foreign.stage.remove()
    assert (foreign.directory / "thesis.tex").exists()
    step.stage.remove()
    assert not step.directory.exists()
    assert (step.directory.with_name(".run.previous") / "summary.json").exists()
    step.stage.remove()  # nothing to do


def test_a_step_that_refuses_its_input_leaves_no_directory(tmp_path):
    step = Step(tmp_path / "run")
    step.stage._run = refuse
    with pytest.raises(InputError, match="nothing to learn"):
        step.stage.run()
    assert not step.directory.exists()


def refuse() -> None:
    raise InputError("nothing to learn")


def champion_stage(path: Path, make: bool = True) -> ChampionStage:
    return ChampionStage(Step1Config(champion=ChampionConfig(path=str(path), make=make)), WORLD)


@pytest.fixture
def champion(tmp_path):
    stage = champion_stage(tmp_path / "champion")
    path = tmp_path / "champion"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    recipe = config_sha256(stage.config.champion.recipe)
    (path / "champion.json").write_text(json.dumps({"recipe_sha256": recipe}))
    write_manifest(path)
    return stage


def test_a_champion_is_known_by_its_recipe_and_its_bytes(champion, tmp_path):
    assert champion.find().state == "finished"
    path = tmp_path / "champion"
    (path / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(InputError, match=r"model\.safetensors.*--force-from champion"):
        champion.find()
    # One from before champions had a manifest is known by its recipe alone.
    (path / "manifest.json").unlink()
    assert champion.find().state == "finished"
    (path / "champion.json").write_text(json.dumps({"recipe_sha256": "c" * 64}))
    with pytest.raises(InputError, match=r"another recipe.*--force-from champion"):
        champion.find()


def test_a_champion_in_the_making_goes_on(tmp_path):
    stage = champion_stage(tmp_path / "champion")
    assert stage.find().state == "absent"
    (unfinished(tmp_path / "champion") / "checkpoints" / "step_200").mkdir(parents=True)
    assert stage.find().why.endswith("resumes from step 200")


def test_a_champion_that_is_given_is_left_alone(tmp_path):
    given = champion_stage(tmp_path / "mine", make=False)
    (tmp_path / "mine").mkdir()
    assert given.find().state == "finished"
    given.remove()
    assert (tmp_path / "mine").exists()
    foreign = champion_stage(tmp_path / "mine")
    with pytest.raises(InputError, match="was not made here"):
        foreign.remove()
    assert (tmp_path / "mine").exists()


def test_one_that_was_made_is_removed_with_what_was_begun(champion, tmp_path):
    unfinished(tmp_path / "champion").mkdir()
    champion.remove()
    assert champion.find().state == "absent"
    # Until the new one is whole, the old one is kept.
    assert [path.name for path in tmp_path.iterdir()] == [".champion.previous"]
    assert (tmp_path / ".champion.previous" / "model.safetensors").read_bytes() == b"weights"
