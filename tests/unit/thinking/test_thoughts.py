"""Thoughts in parallel are those of one sequence after another."""

from dataclasses import replace

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from distforge.errors import InputError
from distforge.thinking import branch_attention
from distforge.thinking.model import ThinkingModel
from distforge.thinking.places import Places
from distforge.thinking.sampling import restricted_logits
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, sample_thoughts
from tests.peak_memory import peak_bytes
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.unit.thinking.cases import (
    EXACT,
    FIRST_WORD,
    MODELS,
    TAGS,
    VOCAB,
    branch_ids,
    last_prediction,
    model,
    padded,
    target_scores_alone,
    thought_scores_alone,
    words,
)

TEXTS = [words(14), words(9, seed=1), words(1, seed=2)]
# Several thoughts at one place, texts with different numbers of them, out of order.
ROWS = torch.tensor([0, 0, 1, 0, 2, 1])
ANCHORS = torch.tensor([3, 3, 8, 13, 0, 0])
TARGETS = words(6, 4, seed=3)
TARGETS[1, 2:] = -100
FIXED, LEARNED = ThoughtConfig(max_tokens=6), ThoughtConfig(max_tokens=6, closing="learned")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(side: str = "right"):
    """Ids, mask, rows and positions of the thoughts as columns of the padded texts."""
    ids, mask = padded(TEXTS, side)
    offsets = torch.tensor([ids.shape[1] - len(text) for text in TEXTS])
    return ids, mask, ROWS, ANCHORS + (offsets[ROWS] if side == "left" else 0)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "config", [FIXED, replace(LEARNED, temperature=1.7)], ids=["fixed", "learned"]
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_log_probabilities_are_those_of_one_thought_after_another(
    name, implementation, config, side
):
    lm = model(name, implementation)
    ids, mask, rows, positions = batch(side)
    thoughts = sample_thoughts(lm, ids, mask, rows, positions, TAGS, config, seeded())
    places = Places(lm, ids, mask, rows, positions, TARGETS, TAGS)
    scores, without = places.score(thoughts).log_probs, places.score_without_thoughts().log_probs
    for i, (row, anchor) in enumerate(zip(ROWS.tolist(), ANCHORS.tolist(), strict=True)):
        text, count = TEXTS[row], int(thoughts.lengths[i])
        targets = TARGETS[i][TARGETS[i] >= 0].tolist()
        close(
            thoughts.log_probs[i, :count],
            thought_scores_alone(lm, text, anchor, thoughts, i, config),
        )
        given = branch_ids(text, anchor, thoughts, i)
        close(scores[i, : len(targets)], target_scores_alone(lm, given, targets))
        plain = target_scores_alone(lm, text[: anchor + 1].tolist(), targets)
        close(without[i, : len(targets)], plain)
    assert (scores[1, 2:] == 0).all()
    assert (without[1, 2:] == 0).all()


@pytest.mark.parametrize("config", [FIXED, LEARNED], ids=["fixed", "learned"])
def test_thinking_and_scoring_in_one_call_is_the_same(config):
    lm = model()
    ids, mask, rows, positions = batch()
    apart = sample_thoughts(lm, ids, mask, rows, positions, TAGS, config, seeded())
    places = Places(lm, ids, mask, rows, positions, TARGETS, TAGS)
    scores = places.score(apart)
    thoughts, together = places.think(config, seeded())
    assert torch.equal(thoughts.tokens, apart.tokens)
    close(thoughts.log_probs, apart.log_probs)
    close(together.log_probs, scores.log_probs)
    assert torch.equal(together.hits, scores.hits)


@torch.no_grad()
def test_a_mixing_head_mixes_what_is_scored():
    thinker = ThinkingModel.wrap(model())
    torch.manual_seed(0)
    thinker.mixing_head.out.weight.normal_()
    ids, mask, rows, positions = batch()
    # Thoughts 0 and 1 share a place and not the targets, 2 and 3 share nothing.
    places = Places(thinker, ids, mask, rows, positions, TARGETS, TAGS)
    thoughts, scores = places.think(LEARNED, seeded())
    again = places.score(thoughts)
    close(again.log_probs, scores.log_probs)
    for i, (row, anchor) in enumerate(zip(ROWS.tolist(), ANCHORS.tolist(), strict=True)):
        targets = TARGETS[i][TARGETS[i] >= 0].tolist()
        plain = TEXTS[row][: anchor + 1].tolist()
        for step, target in enumerate(targets):
            base, alone = last_prediction(thinker.lm, [*plain, *targets[:step]])
            given = branch_ids(TEXTS[row], anchor, thoughts, i)
            thought, beside = last_prediction(thinker.lm, [*given, *targets[:step]])
            weight = thinker.mixing_head(alone[None], beside[None])[0]
            mixed = ((1 - weight) * base + weight * thought).log_softmax(dim=-1)
            close(scores.log_probs[i, step], mixed[target])
            assert bool(scores.hits[i, step]) == (int(mixed.argmax()) == target)
    same = torch.zeros(4, dtype=torch.int64)
    once = Places(thinker, ids, mask, rows[same], positions[same], TARGETS[same], TAGS)
    close(once.score(thoughts.at(same)).log_probs, scores.log_probs[same])


def test_a_model_with_a_window_thinks_within_it():
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=24,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    lm = MistralForCausalLM(config).eval()
    ids, mask, rows, positions = batch()
    thoughts = sample_thoughts(lm, ids, mask, rows, positions, TAGS, FIXED, seeded())
    with torch.no_grad():
        expected = thought_scores_alone(lm, TEXTS[0], 13, thoughts, 3, FIXED)
    close(thoughts.log_probs[3], expected)
    long = replace(FIXED, max_tokens=10)
    with pytest.raises(InputError, match="window of 24"):
        sample_thoughts(lm, ids, mask, rows, positions, TAGS, long, seeded())


def test_blocks_of_attention_change_nothing(monkeypatch):
    lm = model()
    whole = Places(lm, *batch(), TARGETS, TAGS).think(FIXED, seeded())
    monkeypatch.setattr(branch_attention, "_BLOCK_ELEMENTS", 1)
    blocks = Places(lm, *batch(), TARGETS, TAGS).think(FIXED, seeded())
    assert torch.equal(whole[0].tokens, blocks[0].tokens)
    close(whole[1].log_probs, blocks[1].log_probs)


def test_tags_are_masked_and_closing_is_as_asked():
    lm = model()
    ids, mask = padded([words(4)])
    rows = torch.zeros(400, dtype=torch.int64)
    positions = torch.full_like(rows, 3)
    hot = {"temperature": 50.0, "max_tokens": 5}  # nearly uniform: what may come, comes
    fixed = sample_thoughts(lm, ids, mask, rows, positions, TAGS, ThoughtConfig(**hot), seeded())
    assert set(fixed.tokens.unique().tolist()) == set(range(FIRST_WORD, VOCAB))
    assert (fixed.lengths == 5).all()
    assert not fixed.closed.any()
    learned = sample_thoughts(
        lm, ids, mask, rows, positions, TAGS, ThoughtConfig(closing="learned", **hot), seeded()
    )
    for tokens, length, closed, scores in zip(
        learned.tokens.tolist(),
        learned.lengths.tolist(),
        learned.closed.tolist(),
        learned.log_probs,
        strict=True,
    ):
        assert (TAGS.close in tokens) == closed
        assert closed or length == 5
        assert min(tokens[: length - closed], default=FIRST_WORD) >= FIRST_WORD
        assert tokens[length:] == [TAGS.pad] * (5 - length)
        assert (scores[:length] < 0).all()
        assert (scores[length:] == 0).all()
    assert 0 < learned.closed.float().mean() < 0.3


def test_the_temperature_divides_the_logits():
    logits = torch.randn(3, VOCAB, generator=seeded())
    tempered = restricted_logits(logits, TAGS, replace(FIXED, temperature=2.0))
    allowed = tempered.isfinite()
    assert allowed.sum() > 2 * VOCAB
    assert torch.equal(tempered[allowed], logits[allowed] / 2)


def test_tokens_are_drawn_from_the_distribution_that_is_reported():
    lm = model()
    ids, mask = padded([words(4)])
    rows = torch.zeros(20_000, dtype=torch.int64)
    config = ThoughtConfig(max_tokens=1, temperature=2.0)
    thoughts = sample_thoughts(lm, ids, mask, rows, rows + 3, TAGS, config, seeded())
    counts = thoughts.tokens[:, 0].bincount(minlength=VOCAB).double()
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[thoughts.tokens[:, 0]] = thoughts.log_probs[:, 0].double().exp() * len(rows)
    seen = expected > 5
    chi_squared = ((counts - expected) ** 2 / expected)[seen].sum()
    # Degrees of freedom are fewer than seen; 5 standard deviations above the mean.
    assert chi_squared < int(seen.sum()) + 5 * (2 * int(seen.sum())) ** 0.5


def test_the_same_generator_gives_the_same_thoughts_and_a_thought_ignores_the_others():
    lm = model()
    ids, mask, rows, positions = batch()
    one = sample_thoughts(lm, ids, mask, rows, positions, TAGS, FIXED, seeded())
    two = sample_thoughts(lm, ids, mask, rows, positions, TAGS, FIXED, seeded())
    other = sample_thoughts(lm, ids, mask, rows, positions, TAGS, FIXED, seeded(1))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.log_probs, two.log_probs)
    assert not torch.equal(one.tokens, other.tokens)
    assert not torch.equal(one.tokens[0], one.tokens[1]), "two thoughts of one place"
    few = sample_thoughts(lm, ids, mask, rows[:2], positions[:2], TAGS, FIXED, seeded())
    moved = positions.clone()
    moved[2:] = 0
    elsewhere = sample_thoughts(lm, ids, mask, rows, moved, TAGS, FIXED, seeded())
    for changed in (few, elsewhere):
        assert torch.equal(changed.tokens[:2], one.tokens[:2])
        close(changed.log_probs[:2], one.log_probs[:2])


def test_greedy_thoughts_need_no_generator_and_take_the_likeliest():
    lm = model()
    greedy = replace(LEARNED, greedy=True)
    thoughts = sample_thoughts(lm, *batch(), TAGS, greedy)
    again = sample_thoughts(lm, *batch(), TAGS, greedy, seeded(5))
    assert torch.equal(thoughts.tokens, again.tokens)
    assert torch.equal(thoughts.tokens[0], thoughts.tokens[1])
    assert (thoughts.log_probs[:, 0].exp() > 1 / VOCAB).all()


def test_a_thought_of_no_tokens_is_both_tags():
    lm = model()
    places = Places(lm, *batch(), TARGETS, TAGS)
    thoughts, scores = places.think(ThoughtConfig(max_tokens=0), seeded())
    assert thoughts.tokens.shape == (6, 0)
    given = [*TEXTS[1].tolist(), TAGS.open, TAGS.close]
    with torch.no_grad():
        close(scores.log_probs[2], target_scores_alone(lm, given, TARGETS[2].tolist()))


def test_nothing_to_think_is_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    ids, mask, *_ = batch()
    thoughts = sample_thoughts(model(), ids, mask, none, none, TAGS, FIXED)
    assert len(thoughts) == 0
    assert thoughts.log_probs.shape == (0, 6)


def test_the_model_keeps_its_mode_and_its_attention():
    lm = model("gpt2", "eager").train()  # with dropout, which must not act
    first = sample_thoughts(lm, *batch(), TAGS, FIXED, seeded())
    assert lm.training
    assert lm.config._attn_implementation == "eager"
    assert torch.equal(
        first.tokens, sample_thoughts(lm.eval(), *batch(), TAGS, FIXED, seeded()).tokens
    )


def test_memory_is_linear_in_the_length_with_a_thought_at_every_token(tmp_path, monkeypatch):
    monkeypatch.setattr(branch_attention, "_BLOCK_ELEMENTS", 1 << 14)
    lm = tiny_llama(VOCAB, max_positions=4096)
    config = ThoughtConfig(max_tokens=2, greedy=True)

    def peak(length: int) -> int:
        ids = words(1, length)
        rows = torch.zeros(length, dtype=torch.int64)
        return peak_bytes(
            lambda: sample_thoughts(
                lm, ids, torch.ones_like(ids), rows, torch.arange(length), TAGS, config
            ),
            tmp_path / f"{length}.json",
        )

    short, long = peak(128), peak(512)
    # Four times the length; what is quadratic in it would be sixteen times.
    assert long < 5 * short


def test_bad_input_is_refused_in_words():
    lm = model()
    ids, mask, rows, positions = batch()

    def think(config=FIXED, **changes):
        given = {"ids": ids, "mask": mask, "rows": rows, "positions": positions} | changes
        return sample_thoughts(lm, *given.values(), TAGS, config, seeded())

    with pytest.raises(InputError, match="context is 128"):
        think(ThoughtConfig(max_tokens=120))
    with pytest.raises(InputError, match="which is empty or ends before"):
        think(positions=positions + 1)
    with pytest.raises(InputError, match="which is empty or ends before"):
        think(rows=rows + 1)
    empty = mask.clone()
    empty[2] = 0
    with pytest.raises(InputError, match="text 2, which is empty"):
        think(mask=empty)
    holes = mask.clone()
    holes[0, 5] = 0
    with pytest.raises(InputError, match="zeros inside a text"):
        think(mask=holes)
    with pytest.raises(InputError, match=r"should both be \(thoughts,\)"):
        think(rows=rows[:2])
    with pytest.raises(InputError, match=r"torch\.Generator"):
        sample_thoughts(lm, ids, mask, rows, positions, TAGS, FIXED)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="attention interface"):
        sample_thoughts(bloom, ids, mask, rows, positions, TAGS, FIXED, seeded())


@pytest.mark.parametrize(
    "values,message",
    [
        ({"max_tokens": -1}, "at least 0"),
        ({"closing": "never"}, "expected one of fixed, learned"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_a_configuration_out_of_range_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        ThoughtConfig(**values)


def test_tags_come_from_the_tokenizer():
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match=r"no <think> and no </think>"):
        Tags.from_tokenizer(tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    tags = Tags.from_tokenizer(tokenizer)
    assert tokenizer.convert_ids_to_tokens([tags.open, tags.close]) == ["<think>", "</think>"]
    assert (tags.pad, tags.eos) == (0, 1)
    unpadded = tiny_tokenizer(pad=False)
    unpadded.add_tokens(["<think>", "</think>"])
    assert Tags.from_tokenizer(unpadded).pad == unpadded.eos_token_id
    with pytest.raises(InputError, match="three different ids"):
        Tags(open=2, close=2, pad=0)
