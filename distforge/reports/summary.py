"""What every ``summary.json`` is made of: a class a step, which writes the file and reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from distforge import durable
from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.errors import InputError

SUMMARY_NAME = "summary.json"


def must_be(wanted: str) -> WrapValidator:
    """Whatever is wrong with a value, the error says that it must be ``wanted``."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"it must be {wanted}") from None

    return WrapValidator(check)


def among(names: Sequence[str]) -> BeforeValidator:
    """A mapping whose keys are among ``names``, put in their order."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise ValueError(f"its keys must be among {', '.join(names)}")
        return {name: value[name] for name in names if name in value}

    return BeforeValidator(check)


def _number(low: float, high: float, wanted: str) -> BeforeValidator:
    def check(value: Any) -> float:
        if value is None:
            return math.nan
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN is neither below nor above: it was not measured.
        if not is_number or value < low or value > high:
            raise ValueError(f"it must be {wanted}")
        return float(value)

    return BeforeValidator(check)


def _pair(value: Any) -> Any:
    if value is None:
        return math.nan, math.nan
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("it must be a pair [low, high] or null")
    return tuple(value)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("it must be a pair [low, high] with low at most high")
    return value


# What was not measured is null in the file and NaN in the class; true is not a number.
Flag = Annotated[bool, must_be("true or false")]
Count = Annotated[int, Field(ge=0), must_be("a whole number, at least 0")]
Number = Annotated[float, _number(-math.inf, math.inf, "a number or null")]
Fraction = Annotated[float, _number(0.0, 1.0, "a number in [0, 1] or null")]
Bounds = Annotated[tuple[Number, Number], BeforeValidator(_pair), AfterValidator(_ordered)]
ByStrategy = Annotated[dict[str, Fraction], among(STRATEGIES)]
ByUsage = Annotated[dict[str, Fraction], among(USAGE_TYPES)]


class Part(BaseModel):
    """An object of a summary file. Values are never converted: "1" is no number, 1 no flag."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Summary(Part):
    """A summary file: written from an instance, and read into one of the same class.

    A field with a default may be absent in an older file, and what a file says beyond the fields is
    kept. The constructor takes the fields alone, so that none is written under a wrong name.
    """

    remedy: ClassVar[str]

    phase: int = 3
    step: int

    @classmethod
    def parse(cls, content: str | bytes, origin: str = SUMMARY_NAME) -> Self:
        """The summary in a file's content.

        Args:
            origin: how an error names the file.

        Raises:
            InputError: it is not one JSON object, a key is missing, or a value is out of its range.
        """
        try:
            return cls.model_validate_json(content, extra="allow")
        except ValidationError as error:
            raise InputError(_sentence(error, origin, cls.remedy)) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The summary in a file.

        Raises:
            InputError: the file does not exist, or what `parse` refuses.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise InputError(
                f"{path} does not exist; give the directory of a finished run"
            ) from None
        return cls.parse(content, str(path))

    def as_json(self) -> dict[str, Any]:
        """What the file holds: plain JSON values, null for what was not measured."""
        content = json.loads(self.model_dump_json(exclude_unset=True))
        return {"phase": self.phase, "step": self.step, **content, **(self.model_extra or {})}

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        text = json.dumps(self.as_json(), indent=2, allow_nan=False)
        durable.write_text(path, text + "\n")


class StepSummary(Summary):
    """What the summaries of both steps say."""

    steps: Count = 0
    best_step: Count = 0
    seconds: Number = math.nan
    parameters: Count = 0
    model_dir: str = ""
    heldout: str = ""
    registry_version: str = ""
    config_sha256: str = ""
    dataset_sha256: str = ""


def _sentence(error: ValidationError, origin: str, remedy: str) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors(include_url=False)[0]
    kind, value, key = first["type"], first["input"], ".".join(map(str, first["loc"]))
    if kind == "json_invalid":
        return f"{origin} is not JSON ({first['ctx']['error']}); run the step again"
    if kind == "missing":
        return f"{origin} lacks {key!r}; {remedy}"
    if kind == "value_error":
        wanted = str(first["ctx"]["error"])
        return f"{origin}: {key} is {value!r}; {wanted}" if key else f"{origin}: {wanted}"
    if not key:
        return f"{origin} must hold one JSON object; run the step again"
    return f"{origin}: {key} is {value!r}; {first['msg'].replace('Input should', 'it must')}"
