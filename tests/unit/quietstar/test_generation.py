"""Generation with thoughts equals the same written without caches, whatever is in the batch."""

import pytest
import torch

from distforge.quietstar import ThinkingModel
from distforge.quietstar.positions import PositionsConfig, entropy_of
from distforge.quietstar.thoughts import ThoughtConfig
from tests.unit.quietstar.cases import MODELS, TAGS, greedy_text, model, words

PROMPTS = [words(5).tolist(), words(9, seed=1).tolist(), words(2, seed=2).tolist()]
NEW = 7


def thinking_model(name="llama-gqa", implementation="sdpa", mixing=True):
    wrapped = ThinkingModel.wrap(model(name, implementation), mixing=mixing, initial_weight=0.5)
    if mixing:  # a head that says something else at every place
        with torch.no_grad():
            torch.manual_seed(0)
            wrapped.mixing_head.out.weight.normal_()
    return wrapped


POLICIES = {
    "answer": (PositionsConfig("answer"), lambda count, _: count == 0, NEW),
    "all": (PositionsConfig("all"), lambda count, _: True, 1),
    "all, horizon 3": (PositionsConfig("all", horizon=3), lambda count, _: True, 3),
    "interval 3": (PositionsConfig("interval", interval=3), lambda c, _: c % 3 == 0, 1),
    "interval 3, horizon 2": (
        PositionsConfig("interval", interval=3, horizon=2),
        lambda count, _: count % 3 == 0,
        2,
    ),
    "entropy, horizon 2": (
        PositionsConfig("entropy", threshold=2.8, horizon=2),
        lambda _, logits: bool(entropy_of(logits) > 2.8),
        2,
    ),
}


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_batch_writes_what_each_row_would_alone_without_a_cache(name, policy, mixing):
    positions, due, horizon = POLICIES[policy]
    implementation = "eager" if mixing else "sdpa"
    thinker = thinking_model(name, implementation, mixing)
    config = ThoughtConfig(max_tokens=4, closing="learned", greedy=True)
    written = thinker.generate(PROMPTS, TAGS, NEW, positions=positions, thought=config)
    for prompt, got in zip(PROMPTS, written, strict=True):
        ids, thoughts, finished = greedy_text(thinker, prompt, NEW, due, horizon, config)
        assert (got.token_ids, got.thoughts, got.finished) == (ids, thoughts, finished)
    places = {tuple(count for count, _ in row.thoughts) for row in written}
    if policy.startswith("entropy"):
        assert len(places) > 1, "the rows should differ in where they think"
