"""What the three tests say together: PASS, THEATRE or INCONCLUSIVE.

A measure *clears* where its lower bound is above its threshold and is *below* where its upper bound
is under it. PASS asks that all clear; one that is below makes it THEATRE; anything else is
INCONCLUSIVE: more items may tell, and nothing is rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from distforge.errors import InputError

Outcome = Literal["PASS", "THEATRE", "INCONCLUSIVE"]
PASS, THEATRE, INCONCLUSIVE = get_args(Outcome)

WANTED_ITEMS = 2000
"""A verdict on fewer says so beside it."""

# The measures of the three tests; the first two make up the test of divergence.
TESTS: dict[str, tuple[str, ...]] = {
    "divergence": ("divergence_edit", "divergence_prediction"),
    "ablation": ("ablation",),
    "correlation": ("correlation",),
}
MEASURES = tuple(measure for measures in TESTS.values() for measure in measures)


@dataclass(frozen=True)
class Measure:
    """One measure with its bounds, at the level that Holm's procedure gives its test.

    threshold: what it is held against. sources: independent ones (documents, questions) that say
    something about it. A measure that nothing says anything about is NaN, from -inf to inf.
    """

    estimate: float
    low: float
    high: float
    threshold: float
    sources: int

    @property
    def clears(self) -> bool:
        """Whether it is above the threshold beyond doubt."""
        return self.low > self.threshold

    @property
    def is_below(self) -> bool:
        """Whether it is under the threshold beyond doubt."""
        return self.high < self.threshold


@dataclass(frozen=True)
class Verdict:
    """The outcome and what it rests on.

    measures: by name, all of `MEASURES`. controls: accuracy by control, in [0, 1], and "own".
    items, thoughts: examined. alpha: of this look, two-sided. floor: mean edit distance between two
    thoughts for one place, which any distance has to be seen beside. missing: what keeps it from
    PASS whatever the measures say. notes: what a reader should know beside the outcome.
    """

    measures: Mapping[str, Measure]
    controls: Mapping[str, float]
    items: int
    thoughts: int
    alpha: float
    floor: float
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if set(self.measures) != set(MEASURES):
            raise ValueError(f"the measures are {sorted(self.measures)}, expected {MEASURES}")

    @property
    def outcome(self) -> Outcome:
        """PASS, THEATRE or INCONCLUSIVE."""
        if any(measure.is_below for measure in self.measures.values()):
            return THEATRE
        if self.missing or not all(measure.clears for measure in self.measures.values()):
            return INCONCLUSIVE
        return PASS

    def as_json(self) -> dict[str, Any]:
        """Plain values; what was not measured is null."""
        content = {"outcome": self.outcome, **asdict(self)}
        return {name: _plain(value) for name, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `as_json` gave.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls(
                measures={name: _measure(value) for name, value in content["measures"].items()},
                controls={n: _number(v, math.nan) for n, v in content["controls"].items()},
                items=content["items"],
                thoughts=content["thoughts"],
                alpha=content["alpha"],
                floor=_number(content["floor"], math.nan),
                missing=tuple(content["missing"]),
                notes=tuple(content["notes"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"this is no verdict of distforge ({error!r}); judge again") from None


def _measure(value: Mapping[str, Any]) -> Measure:
    return Measure(
        estimate=_number(value["estimate"], math.nan),
        low=_number(value["low"], -math.inf),
        high=_number(value["high"], math.inf),
        threshold=float(value["threshold"]),
        sources=int(value["sources"]),
    )


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
