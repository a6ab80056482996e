"""What training saved on free text, by hand."""

import math

import pytest
import torch

from distforge.quietstar.saved_bits import SMALLEST_GAIN, interval_over, savings
from distforge.theater.conditions import ProbeResult

DOCUMENTS = 24
SOURCES = [f"document {number // 2}" for number in range(2 * DOCUMENTS)]


def costing(bits: float, noise_seed: int | None = None) -> ProbeResult:
    """Two places a document, of two tokens each, that cost ``bits`` a token, or nearly."""
    each = torch.full((len(SOURCES),), 2 * bits)
    if noise_seed is not None:
        generator = torch.Generator().manual_seed(noise_seed)
        each = each + 0.05 * torch.randn(each.shape, generator=generator)
    return ProbeResult(each > math.inf, each, torch.full((len(SOURCES),), 2))


def found(own: tuple[float, float], none: tuple[float, float], sources=SOURCES):
    before, after = ({"own": costing(own[n], 1), "none": costing(none[n], 2)} for n in (0, 1))
    return savings(before, after, sources)


def test_like_is_held_against_like():
    saved = found(own=(3.0, 2.8), none=(4.0, 3.9))
    assert saved.with_thoughts.mean == pytest.approx(0.2, abs=1e-6)
    assert saved.without.mean == pytest.approx(0.1, abs=1e-6)
    assert saved.by_thoughts.mean == pytest.approx(0.1, abs=1e-6)
    assert saved.improved
    assert saved.note == ""


@pytest.mark.parametrize(
    ("own", "none"),
    [
        # Nothing was trained; what thoughts are worth already is not what training gained.
        ((3.0, 3.0), (4.0, 4.0)),
        # Rounding, alike at every place.
        ((3.0, 3.0 - SMALLEST_GAIN / 2), (4.0, 4.0)),
        # Plain training, which saves as much without thoughts.
        ((3.0, 2.8), (4.0, 3.8)),
        ((3.0, 3.2), (4.0, 4.5)),
    ],
)
def test_what_is_no_gain(own, none):
    assert not found(own, none).improved


def test_an_interval_over_few_documents_is_none():
    sources = [f"document {number % 19}" for number in range(len(SOURCES))]
    saved = found(own=(3.0, 2.0), none=(4.0, 4.0), sources=sources)
    assert saved.with_thoughts.mean == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(saved.with_thoughts.low)
    assert math.isnan(saved.with_thoughts.high)
    assert not saved.improved
    assert saved.note.startswith("19 held-out documents carry no interval")


def test_places_of_a_document_are_drawn_together():
    values = torch.arange(len(SOURCES)).div(2, rounding_mode="floor").double().numpy()
    together = interval_over(values, SOURCES)
    alone = interval_over(values, [str(number) for number in range(len(SOURCES))])
    assert together.high - together.low > 1.2 * (alone.high - alone.low)
