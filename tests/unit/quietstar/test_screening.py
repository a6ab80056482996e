"""Screening: what the model is unsure of is learned from, and it is asked once."""

from dataclasses import replace

import pytest
import torch

from distforge.errors import InputError
from distforge.quietstar.config import ScreeningConfig
from distforge.quietstar.screening import screen
from distforge.quietstar.step2_config import Step2Config
from distforge.telemetry import RunLogger
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, restricted_logits
from distforge.training.distributed import World
from tests.thinking_cases import (
    SILENT,
    learner_config,
    opinionated_pair,
    question_like_items,
    thinking_pair,
)
from tests.unit.thinking.cases import greedy_thought, logits_alone


def certainty(lm, tags: Tags, text: tuple[int, ...], thought: ThoughtConfig) -> float:
    """Log-probability of the greedy thought after ``text``, read as one sequence."""
    written = greedy_thought(lm, [*text], thought, tags)
    if len(written) < thought.max_tokens and thought.closing == "learned":
        written.append(tags.close)
    logits = restricted_logits(logits_alone(lm, [*text, tags.open, *written]), tags, thought)
    log_probs = logits.log_softmax(dim=-1)[len(text) :]
    return sum(float(log_probs[at, token]) for at, token in enumerate(written))


@pytest.fixture(scope="module")
@torch.no_grad()
def case():
    """A model, its tags, ten items, and the probability of the model's thought on each."""
    model, tokenizer = opinionated_pair()
    tags = Tags.from_tokenizer(tokenizer)
    items = question_like_items(10)
    thought = learner_config().thought
    sure = torch.tensor([certainty(model.lm, tags, item.text, thought) for item in items]).exp()
    return model, tags, items, sure


def screened(case, path, screening: ScreeningConfig, model=None):
    own, tags, items, _ = case
    log = RunLogger(path, SILENT, {}, "screening", enabled=False)
    world, kept = World(0, 0, 1, torch.device("cpu")), path / "screened.json"
    config = Step2Config(thought=learner_config().thought, screening=screening)
    config = replace(config, probe=replace(config.probe, batch_size=3))
    found = screen(model or own, items, config, tags, world, log, kept)
    return [items.index(item) for item in found]


def between(sure: torch.Tensor, rank: int) -> float:
    """A probability with ``rank`` items below it."""
    low, high = sure.sort().values[rank - 1 : rank + 1].tolist()
    assert high - low > 1e-4
    return (low + high) / 2


@pytest.mark.parametrize("rank", [2, 5, 8])
def test_what_it_is_unsure_of_is_kept(case, tmp_path, rank):
    border = between(case[3], rank)
    kept = screened(case, tmp_path, ScreeningConfig(10, sure=border))
    assert kept == (case[3] < border).nonzero()[:, 0].tolist()


def test_whether_the_answer_is_right_is_not_asked(case, tmp_path):
    model, tags, items, sure = case
    config = ScreeningConfig(10, sure=between(sure, 5))
    other = [replace(item, targets=((item.targets[0][0] + 1,),)) for item in items]
    (tmp_path / "other").mkdir()
    assert screened(case, tmp_path, config) == screened(
        (model, tags, other, sure), tmp_path / "other", config
    )


def test_only_so_many_are_tried(case, tmp_path):
    border = between(case[3], 8)
    kept = screened(case, tmp_path, ScreeningConfig(4, sure=border))
    assert kept == (case[3][:4] < border).nonzero()[:, 0].tolist()


def test_without_screening_all_are_kept_untried(case, tmp_path):
    assert screened(case, tmp_path, ScreeningConfig()) == list(range(10))
    assert not (tmp_path / "screened.json").exists()


def test_a_resumed_run_keeps_the_same_ones_whatever_the_model_is_now(case, tmp_path):
    config = ScreeningConfig(10, sure=between(case[3], 5))
    first = screened(case, tmp_path, config)
    other, _ = thinking_pair(seed=1)
    assert screened(case, tmp_path, config, other) == first


def test_a_model_that_is_sure_of_all_has_nothing_to_learn(case, tmp_path):
    with pytest.raises(InputError, match="sure of all 10 screened items"):
        screened(case, tmp_path, ScreeningConfig(10, sure=float(case[3].min()) / 2))


@pytest.mark.parametrize(
    "bad,said",
    [
        ({"items": -1}, r"screening\.items is -1; expected at least 0"),
        ({"items": 5, "sure": 0.0}, r"screening\.sure is 0\.0; expected a number in \(0, 1\]"),
        ({"sure": 1.5}, r"screening\.sure is 1\.5; expected a number in \(0, 1\]"),
    ],
)
def test_bad_settings(bad, said):
    with pytest.raises(InputError, match=said):
        ScreeningConfig(**bad)
