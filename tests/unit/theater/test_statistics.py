"""Bounds, against closed forms, a plain bootstrap and Holm's procedure by enumeration."""

import itertools
import math

import numpy as np
import pytest

from distforge.handoff.verdict import MEASURES, TESTS
from distforge.theater.statistics import (
    Sums,
    fisher_z,
    holm_bounds,
    permuted_means,
    resampled_means,
)

THRESHOLDS = dict.fromkeys(MEASURES, 0.0)


def normal_replicates(shifts: dict[str, float], count: int = 4000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(shift, 1.0, count) for name, shift in shifts.items()}


def test_resampled_means_have_the_mean_and_the_error_of_the_sample():
    values = np.random.default_rng(1).exponential(size=800)
    drawn = resampled_means({"a": Sums(values, np.ones(800))}, 6000, seed=2)["a"]
    error = values.std() / math.sqrt(800)
    assert drawn.mean() == pytest.approx(values.mean(), abs=4 * error / math.sqrt(6000))
    assert drawn.std() == pytest.approx(error, rel=0.04)


def test_resampled_ratios_are_those_of_a_plain_bootstrap_by_hand():
    rng = np.random.default_rng(3)
    totals, weights = rng.normal(size=60), rng.integers(0, 3, 60).astype(float)
    drawn = resampled_means({"a": Sums(totals, weights)}, 8000, seed=4)["a"]
    by_hand = []
    for _ in range(8000):
        chosen = [int(rng.integers(60)) for _ in range(60)]
        by_hand.append(sum(totals[chosen]) / sum(weights[chosen]))
    levels = [0.025, 0.25, 0.5, 0.75, 0.975]
    spread = np.std(by_hand)
    assert np.quantile(drawn, levels) == pytest.approx(
        np.quantile(by_hand, levels), abs=0.1 * spread
    )


def test_parts_are_drawn_together():
    values = np.random.default_rng(5).normal(size=50)
    same = Sums(values, np.ones(50))
    drawn = resampled_means({"a": same, "b": Sums(values + 1, np.ones(50))}, 1200, seed=0)
    assert drawn["b"] - drawn["a"] == pytest.approx(np.ones(1200))


@pytest.mark.parametrize(("telling", "known"), [(29, False), (30, True)])
def test_a_handful_of_sources_has_no_resamples(telling: int, known: bool):
    values, weights = np.zeros(200), np.zeros(200)
    values[:telling], weights[:telling] = 1.0, 1.0
    parts = {"few": Sums(values, weights), "all": Sums(np.ones(200), np.ones(200))}
    drawn = resampled_means(parts, 1000, seed=0)
    assert np.isnan(drawn["few"]).all() != known
    assert (drawn["all"] == 1).all()


def test_where_nothing_has_weight_there_is_no_mean():
    nothing = Sums(np.zeros(5), np.zeros(5))
    assert math.isnan(nothing.mean)
    assert nothing.sources == 0
    assert np.isnan(resampled_means({"a": nothing}, 1000, seed=0)["a"]).all()


@pytest.mark.parametrize(
    "shifts", list(itertools.product([-2.6, -2.2, 0.0, 2.05, 2.3, 2.6], [2.2, 3.0]))
)
def test_lower_bounds_clear_where_holm_rejects(shifts):
    ablation, correlation = shifts
    replicates = normal_replicates(
        {
            "divergence_edit": 2.5,
            "divergence_prediction": 4.0,
            "ablation": ablation,
            "correlation": correlation,
        }
    )
    bounds = holm_bounds(replicates, THRESHOLDS, alpha=0.05)
    p = {m: (1 + (v <= 0).sum()) / (1 + len(v)) for m, v in replicates.items()}
    p_tests = {test: max(p[m] for m in measures) for test, measures in TESTS.items()}
    for test, measures in TESTS.items():
        cleared = all(bounds[m][0] > 0 for m in measures)
        assert cleared == rejected_by_holm(p_tests, 0.025)[test]


def rejected_by_holm(p_values: dict[str, float], level: float) -> dict[str, bool]:
    """By closed testing with Bonferroni: rejected where every intersection that holds it is."""
    found = {}
    for test in p_values:
        others = [name for name in p_values if name != test]
        subsets = itertools.chain.from_iterable(
            itertools.combinations(others, size) for size in range(len(others) + 1)
        )
        found[test] = all(
            min(p_values[name] for name in (test, *subset)) <= level / (1 + len(subset))
            for subset in subsets
        )
    return found


def test_upper_bounds_share_the_level_of_a_test_of_two_measures():
    # One-sided p of about 0.0062: under 0.025 / 3 = 0.0083 for one measure, not when doubled.
    shifts = dict.fromkeys(MEASURES, 0.0)
    replicates = normal_replicates(shifts | {"ablation": -2.5}, 40_000)
    assert holm_bounds(replicates, THRESHOLDS, 0.05)["ablation"][1] < 0
    replicates = normal_replicates(shifts | {"divergence_edit": -2.5}, 40_000)
    assert holm_bounds(replicates, THRESHOLDS, 0.05)["divergence_edit"][1] > 0


def test_bounds_of_one_test_that_is_surest_are_at_a_third_of_the_level():
    replicates = normal_replicates(dict.fromkeys(MEASURES, 0.0), 40_000)
    low, high = holm_bounds(replicates, THRESHOLDS, 0.05)["ablation"]
    z = 2.394  # of 0.025 / 3, one-sided
    assert (low, high) == pytest.approx((-z, z), abs=0.06)


def test_the_least_of_six_equal_differences_is_below_no_oftener_than_the_level():
    rng, below = np.random.default_rng(7), 0
    for _ in range(150):
        # Each difference is truly on the threshold; its estimate is off by its standard error, 1.
        replicates = normal_replicates(dict.fromkeys(MEASURES, 9.0), 2000)
        replicates["ablation"] = rng.normal(rng.normal(size=(6, 1)), 1.0, (6, 2000))
        below += holm_bounds(replicates, THRESHOLDS, 0.05)["ablation"][1] < 0
    # At most 2.5% are; resamples of the least itself would have put 4 in 5 there.
    assert below <= 10


def test_the_least_of_several_clears_where_all_do():
    replicates = normal_replicates(dict.fromkeys(MEASURES, 9.0))
    for shift, clears in ((9.0, True), (0.0, False)):
        replicates["ablation"] = np.stack([normal_replicates({"a": s})["a"] for s in (9.0, shift)])
        assert (holm_bounds(replicates, THRESHOLDS, 0.05)["ablation"][0] > 0) == clears


def test_without_alpha_no_bound_is_finite():
    bounds = holm_bounds(normal_replicates(dict.fromkeys(MEASURES, 9.0)), THRESHOLDS, 0.0)
    assert set(bounds.values()) == {(-math.inf, math.inf)}


def test_what_is_unknown_in_too_many_resamples_has_no_bounds():
    replicates = normal_replicates(dict.fromkeys(MEASURES, 9.0))
    replicates["correlation"][:400] = np.nan
    bounds = holm_bounds(replicates, THRESHOLDS, 0.05)
    assert bounds["correlation"] == (-math.inf, math.inf)
    assert bounds["ablation"][0] > 0


def test_random_pairings_correlate_as_ranks_do_by_chance():
    centred = np.arange(8) - 3.5
    found = np.tanh(permuted_means([(centred, centred)], 20_000, seed=0))
    # Spearman's rho of n ranks has mean 0 and variance 1 / (n - 1) over all pairings.
    assert found.mean() == pytest.approx(0.0, abs=0.02)
    assert found.var() == pytest.approx(1 / 7, rel=0.05)


def test_a_perfect_order_counts_as_ninety_nine_hundredths():
    assert fisher_z(1.0) == pytest.approx(math.atanh(0.99))
    assert fisher_z(-1.0) == pytest.approx(-math.atanh(0.99))
    assert fisher_z(0.5) == pytest.approx(math.atanh(0.5))
