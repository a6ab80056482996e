"""The checks that configurations share: which ends of an interval belong to it."""

import math

import numpy as np
import pytest

from distforge.errors import InputError, require_in


@pytest.mark.parametrize(
    "interval,value",
    [
        ("[0, 1)", 0),
        ("(0, 1]", 1.0),
        ("[1, inf)", 10**30),
        # What is switched off by infinity: clipping, a limit, a progress line.
        ("[0, inf]", math.inf),
        ("(-inf, 0)", -1e300),
        ("[1, inf]", np.int64(3)),
    ],
)
def test_what_lies_in_an_interval_passes(interval, value):
    require_in(interval, x=value)


@pytest.mark.parametrize(
    "interval,value,said",
    [
        ("[0, 1)", 1, r"x is 1; expected a number in \[0, 1\)"),
        ("(0, 1]", 0, r"x is 0; expected a number in \(0, 1\]"),
        ("[1, inf)", math.inf, "x is inf; expected at least 1"),
        ("(0, inf)", math.inf, "expected a finite number above 0"),
        ("(0, inf]", 0.0, "x is 0.0; expected a number above 0"),
        ("[0, inf]", math.nan, "x is nan; expected at least 0"),
        ("[0, inf]", True, "x is True"),
        ("[0, inf]", "1", "x is '1'"),
    ],
)
def test_what_does_not_is_named(interval, value, said):
    with pytest.raises(InputError, match=said):
        require_in(interval, x=value)
