"""Held-out items are split in two: what picks the weights does not judge them."""

import pytest

from distforge.errors import InputError
from distforge.quietstar.inputs import split_probed
from distforge.thinking.items import ThoughtItem
from distforge.thinking.positions import PositionsConfig, placed, with_places
from distforge.thinking.tags import Tags
from tests.thinking_cases import thinking_pair


def pieces(*counts: int) -> list[ThoughtItem]:
    """Documents of so many pieces each."""
    return [
        ThoughtItem(f"{number}@{96 * piece}", (1,), (), (), document=f"document {number}")
        for number, count in enumerate(counts)
        for piece in range(count)
    ]


@pytest.mark.parametrize(
    "counts,most,probed",
    [
        ([1] * 10, 3, 3),
        # No more than half are probed.
        ([1] * 10, 9, 5),
        ([1, 1, 1, 1], 350, 2),
        # Whole documents, as near as they come to what was wanted.
        ([4, 4, 4], 3, 4),
        ([2, 5, 9], 6, 7),
        ([2, 9, 9], 7, 2),
        # One long document is cut inside, and so is what has no border in its first half.
        ([10], 3, 3),
        ([9, 3], 4, 4),
    ],
)
def test_whole_documents_up_to_half_are_probed(counts, most, probed):
    items = pieces(*counts)
    one, other = split_probed(items, most)
    assert one + other == items
    assert len(one) == probed


def test_three_items_cannot_do_both():
    with pytest.raises(InputError, match="there are 3 held-out items; give four"):
        split_probed(pieces(3), 350)


@pytest.mark.parametrize("kind", ["interval", "all", "entropy", "answer"])
def test_items_with_a_place_are_those_that_placing_finds_one_in(kind):
    model, tokenizer = thinking_pair()
    config = PositionsConfig(kind, interval=3, horizon=2, count=1)
    items = [ThoughtItem(str(n), tuple(range(2, 2 + n)), (), ()) for n in range(1, 9)]
    found = placed(items, model, config, Tags.from_tokenizer(tokenizer))
    kept = {item.id for item in with_places(items, config)}
    assert kept == {item.id for item in found if item.positions}


def test_texts_without_any_place_are_refused():
    items = [ThoughtItem("a", (1, 2, 3, 4), (), ())]
    with pytest.raises(InputError, match=r"none of 1 texts, of 4 tokens .* needs more than 9"):
        with_places(items, PositionsConfig("interval", interval=8, horizon=2))
