"""The formulas of coherence, against values worked out by hand."""

import math

import pytest
import torch

from distforge.theater.coherence import (
    Coherence,
    content_coherence,
    correlation_within,
    edit_distance,
    predictive_coherence,
    semantic_coherence,
    spearman,
    syntactic_coherence,
    thought_diversity,
    well_formedness,
)

HEADINGS = frozenset({90, 91})


def test_semantic_is_the_cosine_of_means_mapped_to_the_unit_interval():
    states = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-5.0, 0.0]]])
    thought = torch.tensor([[True, True, False, False]])
    for column, expected in ((2, 0.5), (3, 0.0), (1, 1.0)):
        around = torch.zeros(1, 4, dtype=torch.bool)
        around[0, column] = True
        assert float(semantic_coherence(states, thought, around)) == pytest.approx(expected)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert float(semantic_coherence(states, nothing, thought)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("content", "closed", "expected"),
    [
        ([90, 1, 2, 91, 3], True, 1.0),
        ([90, 91, 3], True, (1 + 0.5 + 1) / 3),  # the first heading says nothing
        ([90], True, 2 / 3),
        ([90, 1, 2], False, 2 / 3),
        ([1] * 7, True, (1 + 1 + 1 / 4) / 3),  # four 4-grams, one of them distinct
        ([], True, 1.0),
    ],
)
def test_well_formedness(content, closed, expected):
    assert well_formedness(content, closed, HEADINGS) == pytest.approx(expected)


def test_the_composite_is_the_specified_blend():
    assert syntactic_coherence(1.0, 0.5) == 0.75
    assert predictive_coherence(0.0) == 0.5
    assert predictive_coherence(math.log(3)) == pytest.approx(0.75)
    assert Coherence(1.0, 0.5, 0.0).composite == pytest.approx(0.4 + 0.15)


@pytest.mark.parametrize(
    ("thoughts", "expected"),
    [
        ([[1, 2, 3], [1, 2, 3]], 0.0),
        ([[1, 2, 3], [4, 5, 6]], 1.0),
        ([[1, 2, 3], [1, 2, 4]], 1 - 1 / 3),
        ([[], []], 0.0),
        ([[7], [7]], 0.0),
    ],
)
def test_diversity(thoughts, expected):
    assert thought_diversity(thoughts) == pytest.approx(expected)


def test_diversity_of_one_thought_is_unknown():
    assert math.isnan(thought_diversity([[1, 2]]))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], 0.0),
        ([1, 2], [], 1.0),
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2, 3, 4], [1, 3, 4], 0.25),
        ([1, 2, 3], [4, 2, 5, 6], 0.75),
    ],
)
def test_edit_distance(one, other, expected):
    assert edit_distance(one, other) == edit_distance(other, one) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # 1 - 6 * sum of squared differences of ranks / (n (n² - 1)), differences 1, 1, 0, 0.
        ([1, 2, 3, 4], [2, 1, 3, 4], 1 - 6 * 2 / 60),
        # Ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2).
        ([5, 5, 7], [1, 2, 3], 1.5 / math.sqrt(3)),
    ],
)
def test_rank_correlation(one, other, expected):
    assert spearman(one, other) == pytest.approx(expected)
    assert spearman(other, one) == pytest.approx(expected)


def test_correlation_is_within_places_and_says_nothing_where_nothing_varies():
    # Across places, coherence and gain rise together; within each, they go against each other.
    places = [([1, 2, 3], [13, 12, 11]), ([11, 12, 13], [23, 22, 21])]
    assert correlation_within(places) == pytest.approx(-0.99)
    # Two places, rho 0.8 and -0.4, by Fisher's z.
    mixed = [([1, 2, 3, 4], [2, 1, 3, 4]), ([1, 2, 3, 4], [2, 4, 3, 1])]
    assert correlation_within(mixed) == pytest.approx(
        math.tanh((math.atanh(0.8) + math.atanh(-0.4)) / 2)
    )
    silent = [([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2]), ([], [])]
    assert math.isnan(correlation_within(silent))
    assert correlation_within([*silent, *mixed]) == pytest.approx(correlation_within(mixed))


def test_the_content_alone_is_the_composite_without_its_predictive_part():
    assert content_coherence(1.0, 0.3) == pytest.approx((4 + 3 * 0.3) / 7)
