"""What every ``summary.json`` is made of: a class a step, which writes the file and reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ValidationError

from distforge import durable
from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.errors import InputError
from distforge.typed_json import Count, Fraction, Number, Part, among

SUMMARY_NAME = "summary.json"


ByStrategy = Annotated[dict[str, Fraction], among(STRATEGIES)]
ByUsage = Annotated[dict[str, Fraction], among(USAGE_TYPES)]


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
    """What the summaries of both steps say.

    data_note: which files were read as which split; empty of data that were made.
    """

    steps: Count = 0
    best_step: Count = 0
    seconds: Number = math.nan
    parameters: Count = 0
    model_dir: str = ""
    heldout: str = ""
    registry_version: str = ""
    config_sha256: str = ""
    dataset_sha256: str = ""
    data_note: str = ""


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
