"""Which cases of a grid `make test` runs; the others are for the night, `make test-all`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def grid(*axes: Sequence[Any], day: Callable[..., bool]) -> list[Any]:
    """Every combination of ``axes`` for `pytest.mark.parametrize`; ``day(*values)`` picks."""
    return [
        pytest.param(*values, marks=[] if day(*values) else [pytest.mark.nightly])
        for values in itertools.product(*axes)
    ]
