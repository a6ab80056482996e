"""Generation with thoughts equals the same written without caches, whatever is in the batch."""

from dataclasses import replace

import pytest
import torch

from distforge.errors import InputError
from distforge.quietstar import ThinkingModel
from distforge.thinking.positions import PositionsConfig, entropy_of
from distforge.thinking.thoughts import ThoughtConfig
from tests.unit.thinking.cases import MODELS, TAGS, greedy_text, model, words

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


@pytest.mark.parametrize("mixing", [True, False])
@torch.no_grad()
def test_without_thinking_it_is_plain_decoding(mixing):
    thinker = thinking_model(mixing=mixing)
    written = thinker.generate(PROMPTS, TAGS, NEW, think=False)
    for prompt, row in zip(PROMPTS, written, strict=True):
        ids = thinker.lm.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=TAGS.eos
        )[0, len(prompt) :].tolist()
        assert row.token_ids == [token for token in ids if token != TAGS.eos]
        assert row.finished == (TAGS.eos in ids)
        assert row.thoughts == []


def test_a_row_ends_with_the_end_of_sequence_and_the_others_go_on():
    thinker = thinking_model()
    config = ThoughtConfig(max_tokens=3, greedy=True)
    options = {"positions": PositionsConfig("all"), "thought": config}
    free = thinker.generate(PROMPTS, TAGS, NEW, **options)
    ends = replace(TAGS, eos=free[0].token_ids[2])
    assert ends.eos not in free[0].token_ids[:2]
    written = thinker.generate(PROMPTS, ends, NEW, **options)
    assert written[0].finished
    assert written[0].token_ids == free[0].token_ids[:2]
    assert written[0].emitted == 3 + 3 * 3  # two words and the end, each after a thought
    assert any(not row.finished and len(row.token_ids) == NEW for row in written[1:])


def test_sampling_follows_the_generator():
    thinker = thinking_model()

    def write(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"positions": PositionsConfig("interval", interval=2), "temperature": 1.0}
        rows = thinker.generate(PROMPTS, TAGS, NEW, generator=generator, **options)
        return [(row.token_ids, row.thoughts) for row in rows]

    assert write(0) == write(0)
    assert write(0) != write(1)
    with pytest.raises(InputError, match=r"torch\.Generator"):
        thinker.generate(PROMPTS, TAGS, NEW)


def test_bad_prompts_are_refused_and_no_prompts_are_no_rows():
    thinker = thinking_model()
    greedy = ThoughtConfig(greedy=True)
    assert thinker.generate([], TAGS, NEW, thought=greedy) == []
    with pytest.raises(InputError, match="a prompt is empty"):
        thinker.generate([[5], []], TAGS, NEW, thought=greedy)
    with pytest.raises(InputError, match="context is 128"):
        thinker.generate([[5]], TAGS, 120, thought=greedy)
