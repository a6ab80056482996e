"""Where thoughts stand, on masks small enough to read."""

import math

import pytest
import torch

from distforge.errors import InputError
from distforge.thinking.positions import (
    PositionsConfig,
    choose_positions,
    entropy_of,
    next_token_entropy,
)
from tests.unit.thinking.cases import TAGS, model, words

# Five tokens on the left, six on the right, one alone.
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]])


def chosen(config, mask=MASK, **options):
    rows, positions = choose_positions(config, mask, **options)
    return list(zip(rows.tolist(), positions.tolist(), strict=True))


def test_all_but_those_that_too_few_tokens_follow():
    config = PositionsConfig("all")
    assert chosen(config) == [(0, p) for p in range(4)] + [(1, p) for p in range(1, 6)]
    assert chosen(config, following=4) == [(0, 0), (1, 1), (1, 2)]


def test_an_interval_counts_from_the_text_s_own_beginning():
    assert chosen(PositionsConfig("interval", interval=2)) == [(0, 1), (0, 3), (1, 2), (1, 4)]


def test_an_answer_follows_the_last_token():
    assert chosen(PositionsConfig("answer")) == [(0, 4), (1, 6), (2, 3)]
    with pytest.raises(InputError, match="text 1 is empty"):
        chosen(PositionsConfig("answer"), torch.tensor([[1], [0]]))


def test_entropy_takes_the_highest_and_of_equals_the_first():
    entropy = torch.tensor([[1.0, 5, 5, 5, 9, 9, 9], [9.0, 0, 1, 2, 3, 4, 5], [0.0] * 7])
    count = PositionsConfig("entropy", count=2)
    assert chosen(count, entropy=entropy) == [(0, 1), (0, 2), (1, 4), (1, 5)]
    share = PositionsConfig("entropy", fraction=0.25)  # of 4 and of 5, rounded up
    assert chosen(share, entropy=entropy) == [(0, 1), (1, 4), (1, 5)]
    with pytest.raises(InputError, match="need the entropy"):
        chosen(count)


def test_entropy_is_that_of_the_next_token():
    uniform = torch.zeros(2, 8)
    uniform[1, 4:] = -torch.inf
    torch.testing.assert_close(entropy_of(uniform), torch.tensor([math.log(8), math.log(4)]))
    lm, ids = model(), words(2, 7)
    mask = MASK[:2]
    found = next_token_entropy(lm, ids.where(mask.bool(), TAGS.pad), mask)
    with torch.no_grad():
        p = lm(input_ids=ids[1:, 1:]).logits[0].softmax(dim=-1)
    torch.testing.assert_close(found[1, 1:], -(p * p.log()).sum(dim=-1))
    assert (found[~mask.bool()] == 0).all()


@pytest.mark.parametrize(
    "values,message",
    [
        ({"kind": "often"}, "one of all, interval, entropy, answer"),
        ({"interval": 0}, "interval is 0"),
        ({"fraction": 0.0}, r"in \(0, 1\]"),
        ({"count": -1}, "count is -1"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_a_configuration_out_of_range_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        PositionsConfig(**values)
