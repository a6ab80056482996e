"""Alpha is spent once, whatever the looks."""

import math

import numpy as np
import pytest

from distforge.errors import InputError
from distforge.theater.config import TheaterConfig
from distforge.theater.measures import reach_verdict
from distforge.theater.planted.synthetic import synthetic_evidence
from distforge.theater.spending import AlphaSpending


def test_most_is_left_for_the_end():
    spending = AlphaSpending(0.05)
    assert spending.spend(0.5) == pytest.approx(0.0125)  # Kim and DeMets' power family, rho = 2
    assert spending.spend(0.75) == pytest.approx(0.028125 - 0.0125)
    assert spending.spend(1.0) == pytest.approx(0.05 - 0.028125)


@pytest.mark.parametrize("fractions", [[1.0], [i / 10 for i in range(1, 11)], [0.1, 0.7, 5.0]])
def test_all_looks_together_spend_alpha(fractions):
    spending = AlphaSpending(0.05)
    shares = [spending.spend(fraction) for fraction in fractions]
    assert sum(shares) == pytest.approx(0.05)
    assert min(shares) > 0
    assert spending.looks == len(fractions)


def test_a_second_look_at_the_same_place_has_nothing_to_spend():
    spending = AlphaSpending(0.05)
    spending.spend(0.4)
    assert spending.spend(0.4) == spending.spend(0.2) == spending.spend(-1.0) == 0.0


def test_a_restored_one_goes_on_alike():
    whole, first = AlphaSpending(0.1), AlphaSpending(0.1)
    assert whole.spend(0.3) == first.spend(0.3)
    resumed = AlphaSpending(0.1)
    resumed.load_state_dict(first.state_dict())
    assert resumed.spend(0.8) == whole.spend(0.8)
    assert resumed.looks == 2


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_alpha_must_leave_something_open(alpha):
    with pytest.raises(InputError, match="between 0 and 1"):
        AlphaSpending(alpha)


def test_ten_looks_at_a_model_on_the_threshold_decide_wrongly_no_oftener_than_alpha():
    runs, wrong, alpha = 30, 0, 0.2
    for run in range(runs):
        rng, spending = np.random.default_rng(run), AlphaSpending(alpha)
        for look in range(1, 11):
            evidence = synthetic_evidence(100, 0.52, {"direct": 0.5}, rng, thoughts=0)
            config = TheaterConfig(bootstrap=1000, seed=run)
            verdict = reach_verdict(evidence, config, spending.spend(look / 10))
            ablation = verdict.measures["ablation"]
            if ablation.clears or ablation.is_below:
                wrong += 1
                break
    # The 99.9% point of the binomial of 30 at 0.2 is 13.
    assert wrong <= 13
