"""``summary.json`` of step 1, as the final table and the report read it."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.errors import InputError
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
        rest = dict(summary)

        def take(key: str) -> Any:
            if key not in rest:
                raise InputError(f"{origin} lacks {key!r}; run step 1 again to write it anew")
            return rest.pop(key)

        converged = take("converged")
        if not isinstance(converged, bool):
            raise InputError(f"{origin}: converged is {converged!r}; it must be true or false")
        return cls(
            converged=converged,
            accuracy_overall=_fraction(take("accuracy_overall"), "accuracy_overall", origin),
            accuracy=_fractions(take("accuracy"), STRATEGIES, "accuracy", origin),
            token_usage=_fractions(take("token_usage"), USAGE_TYPES, "token_usage", origin),
            champion_accuracy=_fraction(take("champion_accuracy"), "champion_accuracy", origin),
            champion_accuracy_by_strategy=_fractions(
                rest.pop("champion_accuracy_by_strategy", {}),
                STRATEGIES,
                "champion_accuracy_by_strategy",
                origin,
            ),
            targets=_targets(rest.pop("targets", {}), origin),
            details=rest,
        )


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a summary, whole or not at all. JSON has no NaN: what was not measured is null."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_summary(path: Path) -> BakingSummary:
    """Reads ``summary.json``.

    Raises:
        InputError: the file does not exist, is not JSON, or lacks what step 1 writes.
    """
    try:
        summary = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the directory of a finished run") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run step 1 again") from None
    if not isinstance(summary, dict):
        raise InputError(f"{path} must hold one JSON object; run step 1 again")
    return BakingSummary.from_mapping(summary, origin=str(path))


def _fraction(value: object, key: str, origin: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{origin}: {key} is {value!r}; it must be a fraction in [0, 1] or null")
    return float(value)


def _fractions(
    values: object, known: tuple[str, ...], key: str, origin: str
) -> Mapping[str, float]:
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        raise InputError(
            f"{origin}: {key} is {values!r}; its keys must be among {', '.join(known)}"
        )
    return {
        name: _fraction(values[name], f"{key}.{name}", origin) for name in known if name in values
    }


def _targets(values: object, origin: str) -> BakingTargets:
    if not isinstance(values, Mapping):
        raise InputError(f"{origin}: targets is {values!r}; it must be an object")
    plain = BakingTargets()
    usage = _fractions(values.get("token_usage", {}), USAGE_TYPES, "targets.token_usage", origin)
    return BakingTargets(
        accuracy_overall=_fraction(
            values.get("accuracy_overall", plain.accuracy_overall),
            "targets.accuracy_overall",
            origin,
        ),
        accuracy_strategy=_fraction(
            values.get("accuracy_strategy", plain.accuracy_strategy),
            "targets.accuracy_strategy",
            origin,
        ),
        token_usage={**plain.token_usage, **usage},
    )
