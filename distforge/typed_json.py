"""JSON whose fields have types: values are never converted, and an error says what is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

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


class Part(BaseModel):
    """An object of a summary file. Values are never converted: "1" is no number, 1 no flag."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
