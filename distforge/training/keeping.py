"""What every trainer keeps: checkpoints to resume from and the best weights, and when each is due.

One protocol for all training. After a step: an evaluation where one is due, a checkpoint where one
is due, and where any rank was told to stop, a checkpoint at once and the end of the run. Who is
told to stop has little time: the evaluation waits, and the checkpoint says that it is owed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge import durable
from distforge.errors import RunStopped
from distforge.models.export import export_model
from distforge.registry.manifest import write_manifest
from distforge.training.checkpoint import find_latest, load_state, save_checkpoint
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.run_record import RunRecord
from distforge.training.signals import StopRequest, stop_between_steps

CHECKPOINTS_DIRECTORY = "checkpoints"
_BEST_DIRECTORY = "best"


@dataclass(frozen=True)
class Best:
    """The weights that are kept: the step they were seen at and their score; higher is better."""

    step: int
    score: float


class Trainee(Protocol):
    """What a `Keeper` asks of the trainer that it keeps for."""

    def evaluate(self, step: int) -> None:
        """Measure the weights as they are after ``step`` steps; collective."""

    def state_dict(self) -> dict[str, Any]:
        """What else a resumed run needs, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the trainer that `state_dict` was taken from."""


class Saved(Protocol):
    """What lies in a checkpoint beside the engine's part; the same on every rank."""

    def save(self, directory: Path) -> None:
        """Write it; on rank 0 alone."""

    def load(self, directory: Path, step: int) -> None:
        """Read what `save` wrote when ``step`` steps had been taken."""


class Keeper:
    """Keeps for one trainer; every method is collective over the world's ranks.

    Args:
        trainee: the trainer. engine: its.
        directory: the run's directory, on a file system that all ranks share; None keeps nothing
            on disk (a bake in memory), and a signal then ends the process as it always would.
        world: this process.
        evaluate_every: steps between two evaluations, > 0; the last step is always evaluated.
        checkpoint_every: steps between two checkpoints, the last step included; 0 makes none but
            for a run that is told to stop.
        record: is told of every checkpoint.
        beside: what else a checkpoint holds.

    Attributes:
        step: optimizer steps taken.
        best: the weights kept so far, or None.
        evaluation_due: an evaluation of the present weights is owed.
    """

    def __init__(
        self,
        trainee: Trainee,
        engine: TrainingEngine,
        directory: Path | None,
        world: World,
        evaluate_every: int,
        checkpoint_every: int,
        record: RunRecord | None = None,
        beside: Saved | None = None,
    ) -> None:
        self._trainee, self._engine, self._beside = trainee, engine, beside
        self._directory, self._world = directory, world
        self._evaluate_every, self._checkpoint_every = evaluate_every, checkpoint_every
        self._record = record
        self._stop = StopRequest()
        self.step = 0
        self.best: Best | None = None
        self.evaluation_due = False

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint; whether there was one."""
        if self._directory is None:
            return False
        root = self._directory / CHECKPOINTS_DIRECTORY
        latest = find_latest(root) if self._world.is_main else None
        name = self._world.broadcast_object(latest.name if latest else None)
        if name is None:
            return False
        state = load_state(root / name)
        self.step = state["step"]
        self._engine.load(root / name)
        if self._beside is not None:
            self._beside.load(root / name, self.step)
        self.best = _read_best(state.get("best"))
        # Before there was one keeper, step 2 called it "due" and a prompt bake owed nothing.
        self.evaluation_due = state.get("evaluation_due", state.get("due", False))
        self._trainee.load_state_dict(state)
        return True

    @contextmanager
    def stopping_between_steps(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGINT wait for `after_step`."""
        if self._directory is None:
            yield
            return
        with stop_between_steps() as self._stop:
            yield

    def after_step(self, step: int, total: int) -> None:
        """Evaluate and save what is due after ``step`` of ``total`` steps.

        Raises:
            RunStopped: on every rank, after a checkpoint, when any rank was told to stop.
        """
        self.step, last = step, step == total
        self.evaluation_due = last or step % self._evaluate_every == 0
        told = self._stop.agreed(self._world)
        if self.evaluation_due and not told:
            self.evaluate()
            told = self._stop.agreed(self._world)
        every = self._checkpoint_every
        if told or (every and (step % every == 0 or last)):
            self._checkpoint()
        if told:
            raise RunStopped(f"step {step} of {total} is saved")

    def evaluate(self) -> None:
        """Evaluate the present weights, which settles what was owed."""
        self._trainee.evaluate(self.step)
        self.evaluation_due = False

    def is_best(self, score: float) -> bool:
        """Whether ``score`` is above that of all weights kept so far."""
        return self.best is None or score > self.best.score

    def keep(
        self, score: float, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Export the present weights as the best ones; ``model`` is whole."""
        assert self._directory is not None
        self.best = Best(self.step, score)
        if self._world.is_main:
            export_model(model, tokenizer, self._directory / _BEST_DIRECTORY)
        self._world.barrier()

    def take_best(self, directory: Path) -> None:
        """Move the best weights to ``directory``, with a manifest.

        What a run that was killed at its end left there is taken up, or replaced.
        """
        assert self._directory is not None
        if self._world.is_main:
            best = self._directory / _BEST_DIRECTORY
            if best.exists():
                durable.publish_directory(best, directory, replace=True)
            write_manifest(directory)
        self._world.barrier()

    def _checkpoint(self) -> None:
        if self._directory is None:
            return
        state = {
            **self._trainee.state_dict(),
            "step": self.step,
            "best": None if self.best is None else asdict(self.best),
            "evaluation_due": self.evaluation_due,
        }
        root = self._directory / CHECKPOINTS_DIRECTORY
        saved = save_checkpoint(root, self.step, self._write, state, self._world)
        if self._record is not None:
            self._record.checkpoint(self.step, saved)

    def _write(self, directory: Path) -> None:
        self._engine.save(directory)
        if self._beside is not None and self._world.is_main:
            self._beside.save(directory)


def _read_best(best: dict[str, Any] | None) -> Best | None:
    if best is None:
        return None
    # Before there was one keeper, step 1 called its score the accuracy.
    return Best(best["step"], best["score"] if "score" in best else best["accuracy"])
