"""The order of phase 3: step 1 bakes, step 2 reinforces what step 1 left behind."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from distforge.baking import Step1Config, run_step1_baking
from distforge.errors import InputError
from distforge.quietstar import Step2Config, run_step2_rl
from distforge.training.distributed import World, entered_world


@dataclass(frozen=True)
class PipelineConfig(Step1Config):
    """Step 1, and step 2 where ``step2`` is given; it starts from step 1's run."""

    step2: Step2Config | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step2 is not None and self.step2.name == self.name:
            raise InputError(
                f"step2.name is {self.name!r}, as step 1's; give each run a name of its own"
            )


def run_pipeline(config: PipelineConfig, world: World | None = None) -> bool:
    """Run the configured steps; whether each met its goal. Collective over the world's ranks.

    A step 1 that does not converge ends the pipeline. Raises what the steps raise.
    """
    with entered_world(world) as joined:
        step1 = Step1Config(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(Step1Config)}
        )
        baked = run_step1_baking(step1, joined)
        if config.step2 is None or not baked.converged:
            return baked.converged
        step2 = dataclasses.replace(
            config.step2,
            output=config.output,
            baked=str(Path(config.output) / config.name),
            existing=config.existing,
            resume=config.resume,
            telemetry=config.telemetry,
            registry=config.registry,
        )
        return run_step2_rl(step2, joined).improved
