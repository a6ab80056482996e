import numpy as np
import pytest

from distforge.errors import InputError
from distforge.evaluation.intervals import bootstrap_mean, exact_proportion, proportion


def test_it_is_the_normal_interval_where_that_is_right():
    values = np.random.default_rng(0).normal(1.0, 2.0, 4000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.06)
    assert found.mean - found.low == pytest.approx(half, rel=0.06)


def test_it_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.random((300, 60)) < 0.3
    found = [bootstrap_mean(sample, resamples=400, confidence=0.9) for sample in samples]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in found])
    # Binomial error of 300 intervals is 1.7 points; the percentile interval is a little short.
    assert 0.82 <= covered <= 0.95


def test_clusters_widen_it():
    values = np.repeat(np.random.default_rng(2).normal(size=100), 20)
    clusters = [index // 20 for index in range(len(values))]
    alone, whole = bootstrap_mean(values), bootstrap_mean(values, clusters=clusters)
    ratio = (whole.high - whole.low) / (alone.high - alone.low)
    # Twenty equal items count as one: the width grows by the root of twenty.
    assert ratio == pytest.approx(20**0.5, rel=0.15)


def test_equal_arguments_give_equal_intervals():
    values = np.random.default_rng(3).normal(size=50)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_a_fraction_has_wilsons_interval(hits, count, low, high):
    found = proportion(hits, count)
    assert (found.mean, found.low, found.high) == pytest.approx((hits / count, low, high), abs=1e-4)
    with pytest.raises(InputError, match="hits of"):
        proportion(count + 1, count)


@pytest.mark.parametrize(("values", "clusters"), [([], None), ([1.0], ["a", "b"])])
def test_bad_input(values, clusters):
    with pytest.raises(InputError, match="expected at least"):
        bootstrap_mean(values, clusters=clusters)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Beta quantiles, from R's binom.test; with no hit, high is 1 - 0.025 ** (1 / count).
        (100, 100, 0.025 ** (1 / 100), 1.0),
        (0, 300, 0.0, 1 - 0.025 ** (1 / 300)),
        (5, 10, 0.1870860, 0.8129140),
        (1, 10, 0.0025286, 0.4450161),
        (1, 1, 0.025, 1.0),
    ],
)
def test_exact_proportions_are_those_of_the_tables(hits, count, low, high):
    found = exact_proportion(hits, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert found.mean == hits / count


def test_exact_proportions_need_an_item():
    with pytest.raises(InputError, match="at least one item"):
        exact_proportion(0, 0)
