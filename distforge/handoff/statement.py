"""``handoff.json``: what a model of phase 3 states of itself, written and read by one class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from distforge import durable
from distforge.errors import InputError, first_line
from distforge.handoff.verdict import PASS, Outcome, Verdict
from distforge.typed_json import Count, Part, must_be

HANDOFF_FILE = "handoff.json"
MINIMUM_ACCURACY = 0.85
"""Fraction of held-out questions that the baked model must have answered rightly."""

# Plain numbers: JSON's null stands for what was not measured, never NaN.
# What step 2 thinks about; "reward": questions whose answers reward functions judge.
Task = Annotated[
    Literal["questions", "text", "reward"], must_be("one of 'questions', 'text', 'reward'")
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MeasuredOn(Part):
    """How many held-out items, and the hash of the data that they are of."""

    n: Count
    dataset_sha256: Sha256


class Lineage(Part):
    """The hashes of the weights that came before; of the champion where step 1 recorded it."""

    champion_sha256: Sha256 | None
    baked_sha256: Sha256


class StatedMeasure(Part):
    """`Measure` as JSON."""

    estimate: Finite | None
    low: Finite | None
    high: Finite | None
    threshold: Finite
    sources: Count

    @field_validator("high")
    @classmethod
    def _is_above(cls, high: float | None, info: ValidationInfo) -> float | None:
        low = info.data.get("low")
        if high is not None and low is not None and low > high:
            raise ValueError(f"it must be at least low, {low}")
        return high


class Evidence(Part):
    """`Verdict` as JSON; what it says beyond these fields is kept."""

    model_config = ConfigDict(extra="allow")

    outcome: Outcome
    measures: dict[str, StatedMeasure]
    controls: dict[str, Fraction | None]
    items: Count
    thoughts: Count
    alpha: Fraction
    floor: Finite | None
    missing: list[str]
    notes: list[str]

    def recompute(self) -> Outcome:
        """What the bounds make, whatever ``outcome`` says.

        Raises:
            InputError: they are not those of a verdict.
        """
        return Verdict.from_json(self.model_dump()).outcome


class Statement(Part):
    """What a model of phase 3 reached, and on what. Fractions are in [0, 1]; null: not measured.

    baked_accuracy: step 1's model on step 1's held-out data, which ``baked_measured_on`` names;
        null there: somebody stated it.
    before_accuracy, accuracy: on step 2's held-out questions, before and after its training; of
        free text, which has no answers, null. ``measured_on``: those items.
    gain: over the baked model: a fraction of the questions, or bits a token of free text, with its
        95% interval; null where too few documents give none.
    verdict, theater: of the anti-theatre tests, and its whole evidence (`Verdict.as_json`); null
        where nothing was judged.
    thinking_tokens: with their ids. weights_sha256: of the weights that all this was measured of.
    """

    phase: Literal[3] = 3
    baked_accuracy: Fraction | None
    baked_measured_on: MeasuredOn | None
    before_accuracy: Fraction | None
    accuracy: Fraction | None
    measured_on: MeasuredOn
    task: Task
    gain: Finite
    gain_interval: tuple[Finite, Finite] | None
    verdict: Outcome
    theater: Annotated[Evidence | None, BeforeValidator(lambda given: given or None)]
    thinking_tokens: dict[str, Count]
    lineage: Lineage
    config_sha256: Sha256
    weights_sha256: Sha256
    distforge_version: str
    manifest: Literal["manifest.json"] = "manifest.json"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From plain values, as JSON has them; a wrong one is a bug of the caller."""
        return cls.model_validate_json(json.dumps(dict(fields), allow_nan=False))

    def write(self, directory: Path) -> None:
        """Write ``handoff.json``, whole or not at all."""
        content = json.loads(self.model_dump_json())
        text = json.dumps(content, indent=2, allow_nan=False)
        durable.write_text(directory / HANDOFF_FILE, text + "\n")


class AcceptedStatement(Statement):
    """One that phase 4 takes. The context of validation says what the model in the directory is:
    its ``thinking_tokens`` with their ids, and its ``weights_sha256``, where it could be read."""

    @field_validator("baked_accuracy")
    @classmethod
    def _is_enough(cls, value: float | None) -> float | None:
        if value is None or value < MINIMUM_ACCURACY:
            raise ValueError(f"it must be at least {MINIMUM_ACCURACY}")
        return value

    @field_validator("gain_interval")
    @classmethod
    def _is_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float]:
        if value is None or value[0] > value[1]:
            raise ValueError("it must be [low, high]")
        return value

    @field_validator("verdict")
    @classmethod
    def _is_passed(cls, value: Outcome) -> Outcome:
        if value != PASS:
            raise ValueError(f"it must be {PASS!r}")
        return value

    @field_validator("theater")
    @classmethod
    def _agrees(cls, value: Evidence | None, info: ValidationInfo) -> Evidence | None:
        if value is None:
            raise ValueError("it must hold the verdict's measures with their bounds")
        if value.recompute() != value.outcome:
            raise ValueError(f"its own bounds make {value.recompute()}, not {value.outcome!r}")
        if info.data.get("verdict", value.outcome) != value.outcome:
            raise ValueError(f"it says {value.outcome!r}, not {info.data['verdict']!r}")
        return value

    @field_validator("thinking_tokens", "weights_sha256")
    @classmethod
    def _is_of_this_model(cls, value: Any, info: ValidationInfo) -> Any:
        found = (info.context or {}).get(info.field_name)
        if found is not None and found != value:
            raise ValueError(f"it must be the model's own, {found!r}")
        return value


def read_statement(directory: Path) -> Statement:
    """The statement in ``directory``, acceptable or not.

    Raises:
        InputError: there is none, or it is not of this form.
    """
    path = directory / HANDOFF_FILE
    try:
        return Statement.model_validate_json(path.read_bytes(), extra="allow")
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); run step 2 again"
        ) from error


def find_statement_faults(
    directory: Path, found: Mapping[str, Any], remedies: Mapping[str, str]
) -> list[str]:
    """All that keeps the statement in ``directory`` from being accepted, one sentence each.

    Args:
        found: of the model there, the context of `AcceptedStatement`.
        remedies: what to do, by field; by ``field=null`` where it is null; under "" for all others.
    """
    path = directory / HANDOFF_FILE
    if not path.is_file():
        return [f"{HANDOFF_FILE} is missing, with the accuracies and the verdict; {remedies['']}"]
    try:
        AcceptedStatement.model_validate_json(path.read_bytes(), extra="allow", context=dict(found))
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror}); give the right to read it"]
    except ValidationError as error:
        return [
            _sentence(fault, _remedy(fault, remedies)) for fault in error.errors(include_url=False)
        ]
    return []


def _remedy(fault: Mapping[str, Any], remedies: Mapping[str, str]) -> str:
    field = str((*fault["loc"], "")[0])
    keys = [f"{field}=null"] if fault["input"] is None else []
    return next(remedies[key] for key in (*keys, field, "") if key in remedies)


def _sentence(fault: Mapping[str, Any], remedy: str) -> str:
    kind, key = fault["type"], ".".join(map(str, fault["loc"]))
    if kind == "json_invalid":
        return f"{HANDOFF_FILE} is not JSON ({fault['ctx']['error']}); {remedy}"
    if not key:
        return f"{HANDOFF_FILE} must hold one JSON object; {remedy}"
    if kind == "missing":
        return f"{HANDOFF_FILE} lacks {key}; {remedy}"
    if kind == "value_error":
        wrong = str(fault["ctx"]["error"])
    else:
        wrong = fault["msg"].replace("Input should", "it must")
    shown = "null" if fault["input"] is None else repr(fault["input"])
    value = shown if len(shown) <= 80 else "wrong"
    return f"{HANDOFF_FILE}: {key} is {value}, and {wrong}; {remedy}"
