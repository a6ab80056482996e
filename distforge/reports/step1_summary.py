"""``summary.json`` of step 1, as the final table and the report read it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.errors import InputError
from distforge.reports.summary_fields import SummaryFields
from distforge.telemetry.metrics import BakingTargets

SUMMARY_NAME = "summary.json"


@dataclass(frozen=True)
class BakingSummary:
    """The outcome of step 1; fractions in [0, 1], NaN where nothing was measured.

    Attributes:
        converged: whether every target was met.
        accuracy_overall: of the baked model, on held-out questions.
        accuracy: the same by strategy.
        token_usage: by usage type.
        champion_accuracy: of the champion, on the same questions.
        champion_accuracy_by_strategy: the same by strategy; empty where not measured.
        targets: what had to be reached.
        details: everything else the file says, as it stands there.
    """

    converged: bool
    accuracy_overall: float
    accuracy: Mapping[str, float]
    token_usage: Mapping[str, float]
    champion_accuracy: float
    champion_accuracy_by_strategy: Mapping[str, float] = field(default_factory=dict)
    targets: BakingTargets = field(default_factory=BakingTargets)
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(
        cls, summary: Mapping[str, Any], origin: str = SUMMARY_NAME
    ) -> "BakingSummary":
        """Reads the keys that surface.md fixes, and two optional ones.

        Optional are ``champion_accuracy_by_strategy`` and ``targets`` (``accuracy_overall``,
        ``accuracy_strategy``, ``token_usage``: what the run's own config demanded).

        Args:
            summary: the parsed file.
            origin: how an error names it.

        Raises:
            InputError: a key is missing or has a wrong type.
        """
        fields = SummaryFields(summary, origin, "run step 1 again to write it anew")
        return cls(
            converged=fields.flag("converged"),
            accuracy_overall=fields.fraction("accuracy_overall"),
            accuracy=fields.fractions("accuracy", STRATEGIES),
            token_usage=fields.fractions("token_usage", USAGE_TYPES),
            champion_accuracy=fields.fraction("champion_accuracy"),
            champion_accuracy_by_strategy=fields.fractions(
                "champion_accuracy_by_strategy", STRATEGIES, default={}
            ),
            targets=_targets(fields.nested("targets", default={})),
            details=fields.rest,
        )


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a summary, whole or not at all. JSON has no NaN: what was not measured is null."""
    durable.write_json(path, _finite(content))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_summary(path: Path) -> BakingSummary:
    """Reads ``summary.json`` of step 1.

    Raises:
        InputError: the file does not exist, is not JSON, or lacks what step 1 writes.
    """
    return BakingSummary.from_mapping(read_object(path), origin=str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object of a summary file.

    Raises:
        InputError: the file does not exist, or holds something else.
    """
    try:
        summary = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the directory of a finished run") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run the step again") from None
    if not isinstance(summary, dict):
        raise InputError(f"{path} must hold one JSON object; run the step again")
    return summary


def _targets(fields: SummaryFields) -> BakingTargets:
    plain = BakingTargets()
    usage = fields.fractions("token_usage", USAGE_TYPES, default={})
    return BakingTargets(
        accuracy_overall=fields.fraction("accuracy_overall", plain.accuracy_overall),
        accuracy_strategy=fields.fraction("accuracy_strategy", plain.accuracy_strategy),
        token_usage={**plain.token_usage, **usage},
    )
