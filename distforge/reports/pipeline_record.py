"""``pipeline.json``: what ``distforge run`` notes of itself in the directory of its first run.

It names the run of each step, how long each stage took, and how and where the command was given:
what the report of the whole says beside the summaries of the steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from distforge import durable
from distforge.errors import InputError
from distforge.training.run_directory import PIPELINE_FILE
from distforge.typed_json import Part


class StageRecord(Part):
    """A stage as far as it came.

    seconds: of the call that finished it; None while it is unfinished. resumed: whether an earlier
    call had begun it, whose time is not in ``seconds``. ended: UTC, ISO 8601.
    """

    seconds: float | None = None
    resumed: bool = False
    ended: str = ""


class PipelineRecord(Part):
    """The file's content.

    step1, step2: names of the runs, which lie beside each other; ``step2`` is empty without one.
    champion: its path. stages: by name. settings: those that differ from the defaults, by their
    dotted keys. report: hashes of what the report of the whole was made from, and of the page.
    """

    step1: str
    step2: str = ""
    champion: str = ""
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    host: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    report: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path) -> PipelineRecord | None:
        """What was noted in a run's directory; None where there is no such file.

        Raises:
            InputError: the file is something else.
        """
        path = run_dir / PIPELINE_FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path} is no record of a pipeline ({where}: {first['msg']}); remove it, and "
                "`distforge run` writes it again"
            ) from None

    def write(self, run_dir: Path) -> None:
        """Write the file, whole or not at all; the directory is made if absent."""
        run_dir.mkdir(parents=True, exist_ok=True)
        durable.write_text(run_dir / PIPELINE_FILE, self.model_dump_json(indent=1) + "\n")


def changed_settings(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the usual ones, by their dotted keys; all plain values."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        default = usual.get(name)
        if isinstance(value, Mapping):
            within = changed_settings(value, default if isinstance(default, Mapping) else {})
            changed |= {f"{name}.{key}": inner for key, inner in within.items()}
        elif json.dumps(value) != json.dumps(default):
            changed[name] = value
    return changed
