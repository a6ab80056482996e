"""The order of the steps, with the steps themselves replaced."""

from types import SimpleNamespace

import pytest
import torch

from distforge import pipeline
from distforge.errors import InputError
from distforge.pipeline import PipelineConfig, run_pipeline
from distforge.quietstar import Step2Config
from distforge.training.distributed import World

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def calls(monkeypatch):
    """What was called, in order; step 1 converges and step 2 improves unless told otherwise."""
    seen = SimpleNamespace(configs=[], converged=True, improved=True)

    def step1(config, world):
        seen.configs.append(config)
        return SimpleNamespace(converged=seen.converged)

    def step2(config, world):
        seen.configs.append(config)
        return SimpleNamespace(improved=seen.improved)

    monkeypatch.setattr(pipeline, "run_step1_baking", step1)
    monkeypatch.setattr(pipeline, "run_step2_rl", step2)
    return seen


def test_step_2_starts_from_the_run_of_step_1(calls, tmp_path):
    config = PipelineConfig(name="one", output=str(tmp_path), step2=Step2Config(name="two"))
    assert run_pipeline(config, WORLD) is True
    first, second = calls.configs
    assert (first.name, second.name) == ("one", "two")
    assert second.baked == str(tmp_path / "one")
    assert second.output == str(tmp_path)


@pytest.mark.parametrize(
    ("converged", "improved", "steps", "met"),
    [(False, True, 1, False), (True, False, 2, False), (True, True, 2, True)],
)
def test_a_goal_that_is_missed_ends_it(calls, converged, improved, steps, met):
    calls.converged, calls.improved = converged, improved
    assert run_pipeline(PipelineConfig(step2=Step2Config()), WORLD) is met
    assert len(calls.configs) == steps


def test_without_step_2_it_is_step_1(calls):
    assert run_pipeline(PipelineConfig(), WORLD) is True
    assert len(calls.configs) == 1


def test_runs_of_one_name_are_refused():
    with pytest.raises(InputError, match="a name of its own"):
        PipelineConfig(name="same", step2=Step2Config(name="same"))
