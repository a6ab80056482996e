"""The projections: the page shows what the code says, and one of them worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaling_model import MODELS, Cluster, project, table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_the_smallest_by_hand() -> None:
    small = MODELS[0]
    parameters = 512 * 1208 + 8 * (4 * 512**2 + 3 * 512 * 1376)
    assert small.parameters == parameters
    found = project(small, 8, Cluster(flops=1e15, utilisation=0.5, inside=1e11, latency=0.0))
    assert found.compute == pytest.approx(6 * parameters * 65_536 / 5e14)
    # ZeRO 1: an all-reduce of the gradients and a gather of the weights, four bytes each.
    elementwise = 3 * 4 * parameters * 7 / 8
    assert elementwise <= found.sent < 1.05 * elementwise
    assert found.wire == pytest.approx(found.sent / 1e11)
