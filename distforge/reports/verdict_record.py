"""The verdict as a summary file tells it: ``"theater"`` of step 2's ``summary.json``.

Written by `distforge.handoff.verdict.Verdict.as_json`, a floor above; null is what was not
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distforge.errors import InputError


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class MeasureRecord(_Stored):
    """A measure with its bounds and the threshold it is held against; None is unknown."""

    estimate: float | None
    low: float | None
    high: float | None
    threshold: float
    sources: int

    @property
    def clears(self) -> bool:
        """Whether all of the interval is above the threshold."""
        return self.low is not None and self.low > self.threshold

    @property
    def is_below(self) -> bool:
        """Whether all of the interval is under the threshold."""
        return self.high is not None and self.high < self.threshold


class VerdictRecord(_Stored):
    """See `distforge.handoff.verdict.Verdict`."""

    outcome: str
    measures: dict[str, MeasureRecord]
    controls: dict[str, float | None]
    items: int
    thoughts: int
    alpha: float
    floor: float | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any], origin: str) -> VerdictRecord | None:
        """That of a step 2 that was judged; None of one that was not.

        Raises:
            InputError: what stands there is no verdict.
        """
        content = summary.get("theater")
        if not content:
            return None
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(["theater", *map(str, first["loc"])])
            raise InputError(f"{origin}: {where}: {first['msg']}; judge the model again") from None


def known(value: float | None) -> float:
    """NaN where a value is unknown."""
    return math.nan if value is None else value
