"""Screening: what the model gets wrong is learned from, and it is asked once."""

from dataclasses import replace

import pytest
import torch

from distforge.errors import InputError
from distforge.quietstar.config import ScreeningConfig
from distforge.quietstar.screening import screen
from distforge.quietstar.step2_config import Step2Config
from distforge.quietstar.tags import Tags
from distforge.quietstar.thoughts import ThoughtConfig
from distforge.telemetry import RunLogger
from distforge.training.distributed import World
from tests.thinking_cases import SILENT, learner_config, question_like_items, thinking_pair
from tests.unit.quietstar.cases import greedy_thought, logits_alone

KNOWN = (1, 2, 4, 5, 7, 8)


def greedy_answer(lm, tags: Tags, text: tuple[int, ...], thought: ThoughtConfig) -> int:
    """What the model says after its greedy thought, one sequence at a time."""
    content = greedy_thought(lm, [*text], thought, tags)
    return int(logits_alone(lm, [*text, tags.open, *content, tags.close])[-1].argmax())


@pytest.fixture(scope="module")
@torch.no_grad()
def case():
    """A model, its tags, and ten items of which it answers `KNOWN` rightly."""
    model, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    items = question_like_items(10)
    thought = learner_config().thought
    answers = [greedy_answer(model.lm, tags, item.text, thought) for item in items]
    targets = [answer if n in KNOWN else answer + 1 for n, answer in enumerate(answers)]
    return (
        model,
        tags,
        [replace(item, targets=((t,),)) for item, t in zip(items, targets, strict=True)],
    )


def screened(case, path, screening: ScreeningConfig, model=None):
    own, tags, items = case
    log = RunLogger(path, SILENT, {}, "screening", enabled=False)
    world, kept = World(0, 0, 1, torch.device("cpu")), path / "screened.json"
    config = Step2Config(thought=learner_config().thought, screening=screening)
    found = screen(model or own, items, config, tags, world, log, kept)
    return [items.index(item) for item in found]


def test_wrong_ones_are_kept_with_a_share_of_the_right_ones(case, tmp_path):
    kept = screened(case, tmp_path, ScreeningConfig(10, right=1 / 3))
    assert {0, 3, 6, 9} <= set(kept)
    assert len(kept) == 6
    assert kept == sorted(kept)


def test_only_so_many_are_tried(case, tmp_path):
    assert screened(case, tmp_path, ScreeningConfig(4, right=0.0)) == [0, 3]


def test_without_screening_all_are_kept_untried(case, tmp_path):
    assert screened(case, tmp_path, ScreeningConfig()) == list(range(10))
    assert not (tmp_path / "screened.json").exists()


def test_a_resumed_run_keeps_the_same_ones_whatever_the_model_is_now(case, tmp_path):
    config = ScreeningConfig(10, right=0.0)
    first = screened(case, tmp_path, config)
    other, _ = thinking_pair(seed=1)
    assert screened(case, tmp_path, config, other) == first


def test_a_model_without_faults_has_nothing_to_learn(case, tmp_path):
    model, tags, items = case
    with pytest.raises(InputError, match="all 2 screened items rightly"):
        screened((model, tags, items[1:3]), tmp_path, ScreeningConfig(2))


@pytest.mark.parametrize("bad", [{"items": -1}, {"items": 5, "right": 1.0}])
def test_bad_settings(bad):
    with pytest.raises(InputError, match="expected at least 0, and a fraction below 1"):
        ScreeningConfig(**bad)
