"""The questions of bench_s5, against a ball that is moved by hand; its intervals."""

from __future__ import annotations

import pytest
from bench_s5 import interval
from swap_tracking import CUPS, STEPS, SWAPS, make_items, make_tokenizer


def test_thoughts_and_answers_are_where_the_ball_is() -> None:
    words = {number: word for word, number in make_tokenizer().get_vocab().items()}
    for item in make_items(200, seed=3):
        first, *swaps = (words[token] for token in item.text)
        cups = [str(cup) == first for cup in range(CUPS)]
        seen = []
        for swap in swaps:
            one, other = map(int, swap.split("&"))
            cups[one], cups[other] = cups[other], cups[one]
            seen.append(str(cups.index(True)))
        assert len(swaps) == SWAPS
        assert [words[token] for token in item.gold] == seen[1::2]
        assert len(item.gold) == STEPS
        assert [words[token] for token in item.targets[0]] == [seen[-1]]
        assert item.positions == (SWAPS,)


def test_equal_seeds_draw_equal_questions() -> None:
    assert make_items(5, 1) == make_items(5, 1)
    assert make_items(5, 1) != make_items(5, 2)


def test_intervals_over_seeds() -> None:
    # Of 1, 2, 3: standard error 1 / sqrt(3), Student's t with two degrees of freedom.
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, high - mean, mean - low) == pytest.approx((2.0, 2.48, 2.48), abs=5e-3)
    assert interval([0.5]) == (0.5, 0.5, 0.5)
