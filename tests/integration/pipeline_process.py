"""A tiny pipeline that can be ended at a point: for tests, in their process or in one of its own.

A model of a few steps converges never, so what step 1 must reach is taken from it. A point is
``"champion 12"`` (after optimizer step 12 of that stage), ``"after step1"`` (its output is there,
not noted yet) or ``"report"`` (before the page of the whole is written).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distforge.baking.supervised import trainer
from distforge.baking.supervised.convergence import Convergence
from distforge.champion import pretraining
from distforge.cli import main
from distforge.pipeline import report_stage
from distforge.pipeline.notes import Notes
from distforge.training.keeping import Keeper

# Champion and data are given by relative paths: a copy of the whole directory is the same pipeline.
CONFIG = """
name = "tiny"
keep_checkpoints = true
checkpoint_every = 6
[champion]
path = "champion"
make = true
[champion.recipe]
num_examples = 140
[champion.recipe.architecture]
hidden_size = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
intermediate_size = 64
[champion.recipe.training]
max_steps = 16
batch_size = 8
micro_batches = 2
[data]
num_examples = 140
difficulties = [1]
[training]
max_steps = 10
batch_size = 8
micro_batches = 2
[evaluation]
every_steps = 10
validation_questions = 7
stop_when_converged = false
[telemetry]
wandb_mode = "disabled"
[step2]
name = "tiny_step2"
checkpoint_every = 1
[step2.thought]
max_tokens = 8
closing = "learned"
[step2.episodes]
episodes = 8
batch_size = 4
thoughts = 2
episodes_per_request = 2
[step2.probe]
every_steps = 2
items = 4
coherence_items = 1
min_sampled_accuracy = 0.0
[step2.engine]
dtype = "float32"
"""
TRAINEES = {"_Pretraining": "champion", "PromptBakingTrainer": "step1", "ThoughtTrainer": "step2"}


@contextmanager
def tiny_pipeline(point: str, end: Callable[[], None]) -> Iterator[None]:
    """Inside, step 1 converges, and ``end`` is called at the point."""
    after_step, note, write = (
        Keeper.after_step,
        Notes.note_stage,
        report_stage.write_whole_report,
    )

    def take_step(keeper: Keeper, step: int, total: int) -> None:
        after_step(keeper, step, total)
        if point == f"{TRAINEES[type(keeper._trainee).__name__]} {step}":
            end()

    def note_stage(notes: Notes, name: str, stage: object) -> None:
        if point == f"after {name}" and getattr(stage, "seconds", None) is not None:
            end()
        note(notes, name, stage)  # type: ignore[arg-type]

    def write_page(run_dir: Path) -> Path:
        if point == "report":
            end()
        return write(run_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "check_convergence", lambda *_: Convergence(True, 1.0, ()))
        patch.setattr(pretraining, "CHECKPOINT_EVERY", 10)
        patch.setattr(Keeper, "after_step", take_step)
        patch.setattr(Notes, "note_stage", note_stage)
        patch.setattr(report_stage, "write_whole_report", write_page)
        yield


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with tiny_pipeline(sys.argv[1], die):
        sys.exit(main(["run", *sys.argv[2:]]))
