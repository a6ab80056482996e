"""Probes of a model whose right answers are known beforehand."""

import dataclasses

import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.theater import thought_metrics
from distforge.theater.conditions import CONTROLS, ThoughtProbe
from distforge.theater.thought_metrics import measure_thoughts
from distforge.thinking.items import ThoughtItem
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from tests.thinking_cases import question_like_items, thinking_pair

THOUGHT = ThoughtConfig(max_tokens=4, closing="fixed")


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, Tags, list[ThoughtItem]]:
    """Half of the items ask for what the model says after its own thought, half for something
    else; all of them for one token."""
    model, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    items = []
    for number, item in enumerate(question_like_items(8)):
        said = greedy_answer(model, tags, item)
        wanted = said if number % 2 else (said + 1) % 300
        items.append(dataclasses.replace(item, targets=((wanted,),)))
    return model, tags, items


@torch.no_grad()
def greedy_answer(model: nn.Module, tags: Tags, item: ThoughtItem, thought=None) -> int:
    """One token at a time, without any cache."""
    ids = [*item.text, tags.open]
    if thought is None:
        for _ in range(THOUGHT.max_tokens):
            logits = model.lm(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[list(tags.banned(close=True))] = -torch.inf
            ids.append(int(logits.argmax()))
    else:
        ids += thought
    logits = model.lm(input_ids=torch.tensor([[*ids, tags.close]])).logits[0, -1]
    return int(logits.argmax())


@pytest.mark.parametrize("batch_size", [3, 8])
def test_own_thoughts_hit_what_greedy_decoding_would_say(setting, batch_size):
    model, tags, items = setting
    result = ThoughtProbe(model, items, tags, THOUGHT, batch_size).ask("own")
    assert result.hits.tolist() == [number % 2 == 1 for number in range(8)]
    assert result.tokens.tolist() == [1] * 8


def test_gold_is_the_given_thought(setting):
    model, tags, items = setting
    result = ThoughtProbe(model, items, tags, THOUGHT).ask("gold")
    expected = [
        greedy_answer(model, tags, item, list(item.gold)) == item.targets[0][0] for item in items
    ]
    assert result.hits.tolist() == expected


def test_bits_are_those_of_the_whole_target(setting):
    model, tags, items = setting
    result = ThoughtProbe(model, items, tags, THOUGHT).ask("none")
    with torch.no_grad():
        for number, item in enumerate(items):
            logits = model.lm(input_ids=torch.tensor([item.text])).logits[0, -1]
            nats = -logits.log_softmax(dim=-1)[item.targets[0][0]]
            assert float(result.bits[number]) == pytest.approx(float(nats) / 0.693147, rel=1e-4)


def test_controls_replace_the_thought_and_nothing_else(setting):
    model, tags, items = setting
    probe = ThoughtProbe(model, items, tags, THOUGHT)
    batch = probe._batches[0]
    own = batch._think(greedy=True)[0]
    for condition in ("shuffled", "random", "filler"):
        other = batch._replaced(condition)
        assert torch.equal(other.rows, own.rows)
        assert torch.equal(other.positions, own.positions)
        assert not torch.equal(other.tokens, own.tokens)
        assert set(other.tokens.flatten().tolist()) <= set(own.tokens.flatten().tolist())
    shuffled = batch._replaced("shuffled").tokens.tolist()
    assert sorted(shuffled) == sorted(own.tokens.tolist())
    assert len(set(batch._replaced("filler").tokens.flatten().tolist())) == 1


def test_equal_probes_find_the_same(setting):
    model, tags, items = setting
    for condition in ("sampled", *CONTROLS):
        one, two = (ThoughtProbe(model, items, tags, THOUGHT).ask(condition) for _ in range(2))
        assert torch.equal(one.bits, two.bits)


def test_bad_input(setting):
    model, tags, items = setting
    with pytest.raises(InputError, match="no item to probe"):
        ThoughtProbe(model, [], tags, THOUGHT)
    bare = [dataclasses.replace(items[0], gold=None)]
    with pytest.raises(InputError, match="has no true thought"):
        ThoughtProbe(model, bare, tags, THOUGHT).ask("gold")


@pytest.mark.parametrize("closing", ["fixed", "learned"])
def test_a_closer_look_is_within_bounds_and_repeatable(setting, closing):
    model, tags, items = setting
    config = ThoughtConfig(max_tokens=4, closing=closing)
    one, two = (
        measure_thoughts(model, model, items[:3], tags, config, 3, frozenset()) for _ in range(2)
    )
    assert one == two
    parts = (one.coherence.semantic, one.coherence.syntactic, one.coherence.predictive)
    assert all(0 <= part <= 1 for part in (*parts, one.diversity, one.divergence))
    assert -1 < one.correlation < 1
    # Sampled from nearly flat distributions, unlike what is likeliest.
    assert one.divergence > 0.5
    assert one.diversity > 0.5


def test_a_closer_look_depends_on_no_batch(setting, monkeypatch):
    model, tags, items = setting
    config = ThoughtConfig(max_tokens=4, closing="learned")
    whole = measure_thoughts(model, model, items[:3], tags, config, 4, frozenset())
    monkeypatch.setattr(thought_metrics, "_BATCH", 1)
    alone = measure_thoughts(model, model, items[:3], tags, config, 4, frozenset())
    assert dataclasses.astuple(alone.coherence) == pytest.approx(
        dataclasses.astuple(whole.coherence), abs=1e-5
    )
    assert alone.correlation == pytest.approx(whole.correlation, abs=1e-5)
