"""Thoughts that read the same are computed once, and are what each would be alone."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from distforge.thinking import places as places_module
from distforge.thinking.branches import Branches
from distforge.thinking.places import Places
from distforge.thinking.sampling import ThoughtConfig, draw, draw_each, restricted_logits
from distforge.thinking.thoughts import sample_thoughts
from tests.tiny_families import FAMILIES, tiny_family
from tests.tiny_models import tiny_llama
from tests.unit.thinking.cases import (
    ARCHITECTURES,
    EXACT,
    TAGS,
    VOCAB,
    branch_ids,
    logits_alone,
    padded,
    target_scores_alone,
    words,
)

# Falcon asks no attention interface, Mamba has no attention.
THINKING_FAMILIES = sorted(set(FAMILIES) - {"falcon", "mamba", *ARCHITECTURES})
# Sharp enough that thoughts stay together for some tokens, warm enough that they part.
CONFIG = ThoughtConfig(max_tokens=14, closing="learned", temperature=0.2)
# The temperature divides rounding as well.
LOOSE = EXACT / CONFIG.temperature
EACH = 12
TEXTS = [words(11), words(5, seed=1), words(8, seed=2)]
# Two places in the first text, one in each other; the thoughts of a place stand apart.
PLACES = [(0, 4), (0, 10), (1, 4), (2, 7)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def places(lm, targets=None):
    ids, mask = padded(TEXTS)
    rows, positions = (torch.tensor(part).repeat(EACH) for part in zip(*PLACES, strict=True))
    if targets is None:
        targets = torch.zeros(len(rows), 1, dtype=torch.int64)
    return ids, mask, rows, positions, Places(lm, ids, mask, rows, positions, targets, TAGS)


def test_a_draw_from_a_shared_distribution_is_the_draw_from_its_own():
    generator = seeded()
    logits = torch.randn(3, 7, generator=generator)
    which = torch.tensor([2, 0, 2, 1, 2])
    uniform = torch.rand(5, generator=generator)
    for given in (uniform, None):
        for shared, own in zip(
            draw_each(logits, which, given), draw(logits[which], given), strict=True
        ):
            assert torch.equal(shared, own)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_token_is_drawn_by_the_thoughts_own_numbers(name):
    lm = ARCHITECTURES[name](VOCAB)
    ids, mask, rows, positions, _ = places(lm)
    thoughts = sample_thoughts(lm, ids, mask, rows, positions, TAGS, CONFIG, seeded())
    table = torch.rand(len(rows), CONFIG.max_tokens, generator=seeded())
    # Some are equal, some are not, and they end at different tokens: else nothing parts here.
    own = torch.cat([rows[:, None], positions[:, None], thoughts.tokens], dim=1)
    assert len(PLACES) < len(own.unique(dim=0)) < len(own)
    assert len(thoughts.lengths.unique()) > 1
    for index, (row, anchor) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        logits = logits_alone(lm, branch_ids(TEXTS[row], anchor, thoughts, index))
        count = int(thoughts.lengths[index])
        alone = restricted_logits(logits[anchor + 1 :][:count], TAGS, CONFIG).log_softmax(dim=-1)
        written = thoughts.tokens[index, :count, None]
        torch.testing.assert_close(
            thoughts.log_probs[index, :count], alone.gather(-1, written)[:, 0], rtol=0, atol=LOOSE
        )
        below = alone.exp().cumsum(dim=-1)
        # Where its number falls into the token's interval, but for rounding at its ends.
        high = below.gather(-1, written)[:, 0]
        low = high - alone.exp().gather(-1, written)[:, 0]
        number = table[index, :count]
        assert (number > low - LOOSE).all()
        assert (number < high + LOOSE).all()


def in_float64(lm: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes in float64, without the rounding of what is looked at; a mixture of
    experts as it is, whose grouped products know no such dtype."""
    is_mixture = any("experts" in name for name, _ in lm.named_modules())
    return lm if is_mixture else copy.deepcopy(lm).double()


@pytest.mark.parametrize("slots", [1, 60, 8192])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *THINKING_FAMILIES])
@torch.no_grad()
def test_scores_are_those_of_one_sequence_after_another(name, slots, monkeypatch):
    monkeypatch.setattr(places_module, "_SLOTS", slots)
    lm = ARCHITECTURES[name](VOCAB) if name in ARCHITECTURES else tiny_family(name, VOCAB)
    targets = words(EACH * len(PLACES), 3, seed=4)
    targets[: 2 * EACH] = targets[0]  # equal thoughts with equal targets, and with others
    targets[5, 1:] = -100
    *_, rows, positions, asked = places(lm, targets)
    thoughts, thinking = asked.think(CONFIG, seeded())
    scored, plain = asked.score(thoughts), asked.score_without_thoughts()
    assert torch.equal(thinking.hits, scored.hits)
    oracle = in_float64(lm)
    for index, (row, anchor) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        wanted = targets[index][targets[index] >= 0].tolist()
        given = branch_ids(TEXTS[row], anchor, thoughts, index)
        alone = target_scores_alone(oracle, given, wanted)
        without = target_scores_alone(oracle, given[: anchor + 1], wanted)
        for found, expected in ((thinking, alone), (scored, alone), (plain, without)):
            own = found.log_probs[index]
            torch.testing.assert_close(own[: len(wanted)], expected.float(), rtol=0, atol=EXACT)
            assert (own[len(wanted) :] == 0).all()


def test_thoughts_that_read_the_same_take_one_slot_of_a_forward_pass(monkeypatch):
    lm = tiny_llama(VOCAB)
    ids, mask, rows, positions, asked = places(lm)
    seen = []
    feed = Branches.feed

    def counted(branches, tokens, *others):
        seen.append(len(tokens))
        return feed(branches, tokens, *others)

    monkeypatch.setattr(Branches, "feed", counted)
    greedy = replace(CONFIG, greedy=True)
    thoughts = sample_thoughts(lm, ids, mask, rows, positions, TAGS, greedy)
    assert seen[0] == max(seen) == len(PLACES)
    seen.clear()
    asked.score(thoughts)
    assert sum(seen) == len(PLACES)
