"""The learner's layout, slot by slot, and what it must predict: the same as one by one."""

import pytest
import torch

from distforge.errors import InputError
from distforge.quietstar import ThinkingModel
from distforge.thinking.packing import TARGET, THOUGHT, pack_thoughts, packed_mask, thrifty_width
from distforge.thinking.places import Places
from distforge.thinking.sampling import ThoughtConfig, restricted_logits
from distforge.thinking.thoughts import Thoughts
from tests.unit.thinking.cases import EXACT, MODELS, TAGS, model, padded, words

OPEN, CLOSE, PAD = TAGS.open, TAGS.close, TAGS.pad


def written(*thoughts: tuple[int, int, list[int], bool]) -> Thoughts:
    """Thoughts of (row, position, tokens, closed)."""
    longest = max(len(tokens) for _, _, tokens, _ in thoughts)
    tokens = [[*tokens, *[PAD] * (longest - len(tokens))] for _, _, tokens, _ in thoughts]
    lengths = torch.tensor([len(tokens) for _, _, tokens, _ in thoughts])
    rows, positions = ([thought[i] for thought in thoughts] for i in range(2))
    closed = torch.tensor([closed for *_, closed in thoughts])
    ids = torch.tensor(tokens)
    return Thoughts(
        torch.tensor(rows), torch.tensor(positions), ids, lengths, closed, torch.zeros(ids.shape)
    )


def test_a_row_is_laid_out_as_stated():
    texts = [[10, 11, 12, 13, 14], [20, 21]]
    thoughts = written((0, 1, [30, 31], False), (1, 1, [32, CLOSE], True), (0, 2, [33], False))
    targets = torch.tensor([[12, 13], [40, -100], [40, 41]])
    packed = pack_thoughts(texts, thoughts, targets, TAGS)
    assert {name: values[0].tolist() for name, values in packed.items()} == {
        # Text up to the last slot that predicts a target; the last target is never read.
        "input_ids": [10, 11, 12, 13, OPEN, 30, 31, CLOSE, 12, OPEN, 33, CLOSE, 40],
        "position_ids": [0, 1, 2, 3, 2, 3, 4, 5, 6, 3, 4, 5, 6],
        "branch": [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2],
        "anchor": [0, 1, 2, 3, 1, 1, 1, 1, 1, 2, 2, 2, 2],
        # The appended tag is no choice of the model's: the slot before it predicts nothing.
        "labels": [*[-100] * 4, 30, 31, -100, 12, 13, 33, -100, 40, 41],
        "kind": [0, 0, 0, 0, THOUGHT, THOUGHT, 0, TARGET, TARGET, THOUGHT, 0, TARGET, TARGET],
        "thought": [-1, -1, -1, -1, 0, 0, 0, 0, 0, 2, 2, 2, 2],
        "step": [-1, -1, -1, -1, 0, 1, -1, 0, 1, 0, -1, 0, 1],
        # The text predicts 12 after slot 1 and 13 after slot 2; it does not go on with 40.
        "base_index": [-1, -1, -1, -1, -1, -1, -1, 1, 2, -1, -1, 2, -1],
    }
    second = {name: values[1].tolist() for name, values in packed.items()}
    assert second["input_ids"] == [20, 21, OPEN, 32, CLOSE, *[PAD] * 8]
    assert second["labels"][:5] == [-100, -100, 32, CLOSE, 40], "a sampled tag is a choice"
    assert second["kind"][:5] == [0, 0, THOUGHT, THOUGHT, TARGET]
    assert second["branch"][5:] == [-1] * 8


def test_rows_are_cut_at_the_width():
    texts = [[10, 11, 12, 13], [20, 21, 22]]
    thoughts = written((0, 0, [30], False), (0, 1, [31], False), (0, 2, [32], False))
    targets = torch.tensor([[11], [12], [13]])
    packed = pack_thoughts(texts, thoughts, targets, TAGS, width=8)
    assert packed["input_ids"].shape == (3, 6)
    assert packed["thought"].amax(dim=1).tolist() == [0, 1, 2]
    assert packed["base_index"][packed["kind"] == TARGET].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="exceed width = 5"):
        pack_thoughts(texts, thoughts, targets, TAGS, width=5)


@pytest.mark.parametrize("hidden_size", [1, 20, 10_000])
@pytest.mark.parametrize("text", [2, 6, 40])
def test_the_thrifty_width_costs_little(text, hidden_size):
    """A slot costs as much as two columns a channel, and the columns of its row."""
    texts = [list(range(10, 10 + text)), list(range(10, 13))]
    lengths = [(0, 5), (0, 1), (0, 9), (0, 4), (1, 7), (1, 2)]
    thoughts = written(*[(row, 1, [30] * length, False) for row, length in lengths])
    targets = torch.tensor([[11, 12]] * 5 + [[11, -100]])

    def cost(width: int | None) -> int:
        ids = pack_thoughts(texts, thoughts, targets, TAGS, width=width)["input_ids"]
        return ids.numel() * (2 * hidden_size + ids.shape[1])

    whole = pack_thoughts(texts, thoughts, targets, TAGS)["input_ids"].shape[1]
    found = thrifty_width(texts, thoughts, targets, hidden_size)
    possible = []
    for width in range(whole + 1):
        try:
            possible.append(cost(width))
        except InputError:
            assert found > width
    assert cost(found) <= min(cost(None), possible[0], 1.05 * min(possible))


def test_rows_of_small_models_are_short():
    """Every branch in one row would cost 15 times as much: it attends to all of them."""
    text, places = list(range(10, 106)), range(90)
    thoughts = written(*[(0, place, [30] * 12, False) for place in places for _ in range(8)])
    width = thrifty_width([text], thoughts, torch.full((720, 4), 11), 160)
    assert 200 < width < 1000
    assert thrifty_width([text], thoughts, torch.full((720, 4), 11), 100_000) > 3000


def test_the_mask_shows_the_text_to_the_anchor_and_the_own_branch():
    branch = torch.tensor([[0, 0, 0, 1, 1, 2, -1]])
    anchor = torch.tensor([[0, 1, 2, 1, 1, 0, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]
    assert packed_mask(branch, anchor)[0, 0].int().tolist() == expected


@pytest.mark.parametrize("closing", ["fixed", "learned"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_packed_forward_is_what_was_sampled_and_scored(name, implementation, closing):
    thinker = ThinkingModel.wrap(model(name, implementation), mixing=False)
    texts = [words(12), words(7, seed=1)]
    ids, mask = padded(texts)
    rows = torch.tensor([0, 0, 0, 1, 1])
    positions = torch.tensor([2, 2, 11, 6, 0])
    targets = words(5, 3, seed=2)
    targets[0] = texts[0][3:6]
    targets[3, 1:] = -100
    config = ThoughtConfig(max_tokens=5, closing=closing, temperature=1.3)
    generator = torch.Generator().manual_seed(0)
    places = Places(thinker, ids, mask, rows, positions, targets, TAGS)
    thoughts, scores = places.think(config, generator)
    for width in (None, 24):
        packed = pack_thoughts(texts, thoughts, targets, TAGS, width=width)
        output = thinker(**packed)
        labelled = packed["labels"] != -100
        kind, thought, step, label = (
            packed[key][labelled] for key in ("kind", "thought", "step", "labels")
        )
        assert (packed["input_ids"].shape[0] > 2) == (width is not None)
        for wanted, logits, expected in (
            (THOUGHT, restricted_logits(output.logits, TAGS, config), thoughts.log_probs),
            (TARGET, output.logits, scores.log_probs),
        ):
            these = kind == wanted
            got = logits.log_softmax(dim=-1)[these].gather(-1, label[these, None])[:, 0]
            given = expected[thought[these], step[these]]
            torch.testing.assert_close(got, given, rtol=0, atol=EXACT)
        assert int((kind == THOUGHT).sum()) == int(thoughts.lengths.sum())
        assert int((kind == TARGET).sum()) == int((targets != -100).sum())


def test_bad_input_is_refused_in_words():
    thoughts = written((0, 1, [30], False))
    targets = torch.tensor([[12]])
    with pytest.raises(InputError, match="text 0 is empty"):
        pack_thoughts([[]], thoughts, targets, TAGS)
    with pytest.raises(InputError, match="follows token 1 of a text of 1 tokens"):
        pack_thoughts([[10]], thoughts, targets, TAGS)
    with pytest.raises(InputError, match="text 0 of 0"):
        pack_thoughts([], thoughts, targets, TAGS)
