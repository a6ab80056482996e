"""Evidence of the verdict against plain forward passes without a cache."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from distforge.errors import InputError
from distforge.handoff.verdict import INCONCLUSIVE
from distforge.theater import TheaterConfig, evaluate_theater, examinee
from distforge.theater.coherence import edit_distance
from distforge.theater.evidence import Examinee, gather_evidence
from distforge.thinking.items import ThoughtItem, pad_texts
from distforge.thinking.thoughts import ThoughtConfig, contents_of, sample_thoughts
from distforge.training.distributed import World
from tests.thinking_cases import opinionated_pair, question_like_items, thinking_pair

WORLD = World(0, 0, 1, torch.device("cpu"))
THOUGHT = ThoughtConfig(max_tokens=5, closing="learned")
CONFIG = TheaterConfig(thoughts=4, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def judged() -> tuple[Examinee, list[ThoughtItem]]:
    model, tokenizer = opinionated_pair()
    control, _ = thinking_pair(seed=5)
    who = examinee(model, tokenizer, THOUGHT, direct={"direct": control})
    return who, question_like_items(6)


def silent(text: str) -> None:
    pass


@torch.no_grad()
def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return model.lm(input_ids=torch.tensor([ids])).logits[0].double()


def predicted(who: Examinee, item: ThoughtItem, thought: tuple[int, ...] | None) -> torch.Tensor:
    """Logits of the target tokens, read from one whole sequence."""
    inside = [] if thought is None else [who.tags.open, *thought, who.tags.close]
    before = [*item.text, *inside]
    found = logits(who.model, [*before, *item.targets[0]])
    return found[len(before) - 1 : -1]


def sampled(who: Examinee, items: list[ThoughtItem]) -> list[list[tuple[int, ...]]]:
    """The four thoughts of each item that the first batch samples."""
    rows = torch.arange(len(items)).repeat_interleave(4)
    last = torch.tensor([item.positions[0] for item in items])[rows]
    generator = torch.Generator().manual_seed(CONFIG.seed * 1_000_003)
    ids, mask = pad_texts(items, who.tags.pad)
    found = sample_thoughts(who.model, ids, mask, rows, last, who.tags, THOUGHT, generator)
    contents = contents_of(found)
    return [contents[start : start + 4] for start in range(0, len(contents), 4)]


def is_right(found: torch.Tensor, item: ThoughtItem) -> bool:
    return found.argmax(-1).tolist() == list(item.targets[0])


def reachable(who: Examinee, items: list[ThoughtItem]) -> list[ThoughtItem]:
    """The items, asking for what is said after the first thought: some answers are right then."""
    return [
        dataclasses.replace(item, targets=((int(predicted(who, item, said[0])[0].argmax()),),))
        for item, said in zip(items, sampled(who, items), strict=True)
    ]


def test_accuracies_gains_and_variation_are_those_of_whole_sequences(judged):
    who, items = judged
    items = reachable(who, items)
    said = sampled(who, items)
    evidence = gather_evidence(who, items, CONFIG, WORLD, silent)
    assert [one.source for one in evidence] == [item.id for item in items]
    for item, thoughts, one in zip(items, said, evidence, strict=True):
        hits = [is_right(predicted(who, item, thought), item) for thought in thoughts]
        assert one.own == sum(hits) / 4
        assert one.thoughts == 4
        plain = predicted(who, item, None)
        assert one.controls["none"] == is_right(plain, item)
        other = logits(who.direct["direct"], [*item.text, *item.targets[0]])
        assert one.controls["direct"] == is_right(other[len(item.text) - 1 : -1], item)
        entropy = torch.distributions.Categorical(logits=plain).entropy()
        assert [pair[0] for pair in one.tokens] == pytest.approx(entropy.tolist(), abs=1e-4)
        assert one.floor == pytest.approx(
            sum(edit_distance(a, b) for a, b in itertools.pairwise(thoughts)) / 3
        )
        target = item.targets[0][0]
        without = float(plain.log_softmax(-1)[0, target])
        gains = [
            float(predicted(who, item, thought).log_softmax(-1)[0, target]) - without
            for thought in thoughts
        ]
        assert one.gain == pytest.approx(gains if len(set(thoughts)) > 1 else [], abs=2e-4)
        assert len(one.coherence) == len(one.gain)
    assert any(one.own > 0 for one in evidence)


def test_another_items_thought_of_like_length_is_what_predictions_are_compared_with(judged):
    who, items = judged
    said = sampled(who, items)
    evidence = gather_evidence(who, items, CONFIG, WORLD, silent)
    for place, (item, one) in enumerate(zip(items, evidence, strict=True)):
        own = predicted(who, item, said[place][0]).softmax(-1)
        possible = [
            [
                float((own[i] - predicted(who, item, other[0]).softmax(-1)[i]).abs().sum() / 2)
                for i in range(len(own))
            ]
            for number, other in enumerate(said)
            if number != place
        ]
        found = [variation for _, variation in one.tokens]
        assert any(found == pytest.approx(row, abs=1e-4) for row in possible)


def test_what_is_written_without_thinking_holds_no_thinking_token(judged):
    who, items = judged
    said = sampled(who, items)
    evidence = gather_evidence(who, items, CONFIG, WORLD, silent)
    longest = max(len(content) for thoughts in said for content in thoughts)
    for item, thoughts, one in zip(items, said, evidence, strict=True):
        ids = list(item.text)
        for _ in range(longest):
            scores = logits(who.model, ids)[-1]
            scores[list(who.thinking)] = -torch.inf
            ids.append(int(scores.argmax()))
            if ids[-1] == who.tags.eos:
                break
        plain = ids[len(item.text) :]
        distances = [edit_distance(c, plain[: max(len(c), 1)]) for c in thoughts]
        assert one.edit == pytest.approx(sum(distances) / 4)


class OneOf(World):
    """A rank that hears nothing of the others."""

    def gather_objects(self, value):
        return [value]


def test_ranks_share_the_places_and_find_the_same(judged):
    who, items = judged
    config = dataclasses.replace(CONFIG, batch_size=2)
    alone = gather_evidence(who, items, config, WORLD, silent)
    parts = [
        gather_evidence(who, items, config, OneOf(rank, rank, 2, WORLD.device), silent)
        for rank in range(2)
    ]
    assert sorted(map(repr, parts[0] + parts[1])) == sorted(map(repr, alone))


def test_places_of_one_text_are_places_of_their_own(judged):
    who, _ = judged
    text = question_like_items(1)[0].text
    item = ThoughtItem("doc@0", text, (1, 3), ((5,), (6, 7)), document="doc")
    evidence = gather_evidence(who, [item], CONFIG, WORLD, silent)
    assert [one.source for one in evidence] == ["doc", "doc"]
    assert [len(one.tokens) for one in evidence] == [1, 2]


def test_one_place_alone_cannot_be_given_anothers_thought(judged):
    who, items = judged
    with pytest.raises(InputError, match="1 place to think at"):
        gather_evidence(who, items[:1], CONFIG, WORLD, silent)


def test_on_too_few_items_nothing_is_said_and_it_is_said_how_many_it_takes(judged):
    who, items = judged
    verdict = evaluate_theater(who, items, CONFIG, WORLD)
    assert verdict.outcome == INCONCLUSIVE
    assert verdict.thoughts == 0
    assert "6 held-out questions or documents" in verdict.missing[0]
    assert "2,000" in verdict.missing[0]


def test_without_a_control_of_equal_compute_nothing_passes(judged):
    who, _ = judged
    items, config = question_like_items(32), dataclasses.replace(CONFIG, batch_size=16)
    alone = dataclasses.replace(who, direct={})
    assert "--control.path" in evaluate_theater(alone, items, config, WORLD).missing[0]
    assert not evaluate_theater(who, items, config, WORLD).missing
    assert not evaluate_theater(alone, items, config, WORLD, needs_direct=False).missing
