"""What stands in for a thought: of whom, and of what length."""

import pytest
import torch

from distforge.errors import InputError
from distforge.theater import substitutes
from distforge.thinking.thoughts import Thoughts, contents_of

PAD = 0


def thoughts(contents: list[list[int]]) -> Thoughts:
    """Closed by themselves: the tag, 3, is the last of their tokens."""
    width = max(map(len, contents)) + 1
    rows = [[*content, 3] + [PAD] * (width - 1 - len(content)) for content in contents]
    count = len(contents)
    return Thoughts(
        rows=torch.arange(count),
        positions=torch.full((count,), 9),
        tokens=torch.tensor(rows),
        lengths=torch.tensor([len(content) + 1 for content in contents]),
        closed=torch.ones(count, dtype=torch.bool),
        log_probs=torch.zeros(count, width),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


OWN = thoughts([[10 + i] * (1 + i % 5) for i in range(23)])


@pytest.mark.parametrize("substitute", [substitutes.shuffled, substitutes.matched])
def test_everyone_gets_one_that_is_not_theirs_at_their_own_place(substitute):
    for seed in range(20):
        other = substitute(OWN, generator(seed))
        assert sorted(contents_of(other)) == sorted(contents_of(OWN))
        assert all(a != b for a, b in zip(contents_of(other), contents_of(OWN), strict=True))
        assert other.rows.tolist() == OWN.rows.tolist()
        assert other.positions.tolist() == OWN.positions.tolist()


def test_matched_ones_differ_in_length_as_little_as_a_ring_can():
    other = substitutes.matched(OWN, generator())
    difference = (other.content_lengths - OWN.content_lengths).abs()
    # Lengths 1 to 5: one step up at four places, and from the longest back to the shortest.
    assert difference.sum() == 2 * (5 - 1)
    assert (difference == 0).sum() == len(OWN) - 5


def test_two_equal_lengths_are_not_always_dealt_alike():
    dealt = {tuple(contents_of(substitutes.matched(OWN, generator(seed)))) for seed in range(5)}
    assert len(dealt) == 5


@pytest.mark.parametrize("substitute", [substitutes.shuffled, substitutes.matched])
def test_one_alone_is_refused(substitute):
    with pytest.raises(InputError, match="at least two items"):
        substitute(OWN.at(slice(0, 1)), generator())


def test_filler_is_the_commonest_token_as_often():
    own = thoughts([[7, 8, 8], [8], [9, 9, 8, 7]])
    assert contents_of(substitutes.filler(own)) == [(8, 8, 8), (8,), (8, 8, 8, 8)]


def test_random_tokens_come_from_the_thoughts_and_are_as_many():
    own = thoughts([[7, 8, 8], [8], [9, 9, 8, 7]] * 200)
    drawn = [
        token for content in contents_of(substitutes.random(own, generator())) for token in content
    ]
    assert [len(c) for c in contents_of(substitutes.random(own, generator()))] == [3, 1, 4] * 200
    shares = [drawn.count(token) / len(drawn) for token in (7, 8, 9)]
    # Of eight tokens two are 7, four 8 and two 9; standard error about 1.2 points.
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_empty_thoughts_have_no_filler_and_nothing_to_draw():
    own = thoughts([[], []])
    assert contents_of(substitutes.filler(own)) == [(), ()]
    assert contents_of(substitutes.random(own, generator())) == [(), ()]
