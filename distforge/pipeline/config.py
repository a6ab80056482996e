"""The configuration of phase 3, composed of the steps' own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from distforge.baking import Step1Config
from distforge.config import to_dict
from distforge.errors import InputError, require_choice
from distforge.quietstar import Step2Config
from distforge.reports.pipeline_record import changed_settings

From = Literal["none", "champion", "step1", "step2", "report"]

# Where a run goes and how it is watched, and what only a command says.
_NOT_SHOWN = ("name", "output", "existing", "resume", "dry_run", "force", "force_from")


@dataclass(frozen=True)
class PipelineConfig(Step1Config):
    """Phase 3: step 1, and step 2 where ``step2`` is given; it starts from step 1's run.

    A stage is skipped where its verified output is there, and an unfinished one continues: the same
    command, given again, resumes. ``existing = "replace"`` is ``force``.

    step2: the settings of step 2, those of ``distforge think``; none leaves step 2 out.
    force: make all stages' output again; what is there is kept, hidden next to it, until the new
        one of each has ended. A champion that is given stays.
    force_from: the same from one stage on.
    Both are ignored with ``resume`` "auto", which launchers give, and "force".
    """

    step2: Step2Config | None = None
    force: bool = False
    force_from: From = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("force_from", self.force_from, get_args(From))
        if self.step2 is None:
            if self.force_from == "step2":
                raise InputError(
                    "force_from is 'step2' without a second step; add a table [step2] to the "
                    "configuration"
                )
        elif self.step2.name == self.name:
            raise InputError(
                f"step2.name is {self.name!r}, as step 1's; give each run a name of its own"
            )

    @property
    def step1_config(self) -> Step1Config:
        """Step 1's own part, which resumes what it finds."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(Step1Config)}
        return Step1Config(**{**own, "existing": "resume"})

    @property
    def step2_config(self) -> Step2Config | None:
        """Step 2's, from step 1's run, beside it."""
        return self.step2 and dataclasses.replace(
            self.step2,
            output=self.output,
            baked=str(Path(self.output) / self.name),
            existing="resume",
            resume=self.resume,
            telemetry=self.telemetry,
            registry=self.registry,
        )

    @property
    def run_directories(self) -> list[Path]:
        """Of the steps, in order."""
        steps = [self.name, *([self.step2.name] if self.step2 else [])]
        return [Path(self.output) / name for name in steps]

    @property
    def forced_from(self) -> From:
        """The first stage that is made anew whatever is there."""
        if self.resume != "off":
            return "none"
        if self.force or self.existing == "replace":
            return "champion"
        return self.force_from

    @property
    def changed_settings(self) -> dict[str, Any]:
        """Those of both steps that differ from the defaults, by their dotted keys."""
        changed = changed_settings(to_dict(self.step1_config), to_dict(Step1Config()))
        if (step2 := self.step2_config) is not None:
            beside = {"baked", "telemetry", "registry", *_NOT_SHOWN}
            own = changed_settings(to_dict(step2), to_dict(Step2Config()))
            changed |= {f"step2.{k}": v for k, v in own.items() if k.split(".")[0] not in beside}
        return {name: value for name, value in changed.items() if name not in _NOT_SHOWN}
