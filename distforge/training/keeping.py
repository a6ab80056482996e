"""What every trainer keeps: checkpoints to resume from and the best weights, and when each is due.

One protocol for all training. After a step: an evaluation where one is due, a checkpoint where one
is due, and where any rank was told to stop, a checkpoint at once and the end of the run. Who is
told to stop has little time: the evaluation waits, and the checkpoint says that it is owed.

Training waits for a checkpoint's files to be written. Where they are large it goes on while they
are flushed and hashed, and the checkpoint gets its name between two later steps; only then it is
told to anyone, and the one before is removed. A pin, a stop and the last step wait for all of it.

A run that is judged can go back. A checkpoint is pinned when its weights pass, with a copy of the
best weights of that time in it; going back restores all of it and saves it anew, under a number
that goes on, before training does. So a run that is killed has gone back or has not, and the best
weights on the disk are those of the checkpoint that it resumes from.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge import durable
from distforge.errors import InputError, RunStopped
from distforge.models.export import export_model
from distforge.registry.manifest import write_manifest
from distforge.training.afterwards import spared
from distforge.training.checkpoint import (
    UnfinishedCheckpoint,
    begin_checkpoint,
    find_latest,
    load_state,
    remove_checkpoints,
)
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.kept import Best, Judged, Saved, Trainee, read_best
from distforge.training.node_disks import copy_to_all, seen_by_all
from distforge.training.pins import Pin, require_whole, take_up
from distforge.training.run_record import RunRecord
from distforge.training.signals import StopRequest, stop_between_steps

CHECKPOINTS_DIRECTORY = "checkpoints"
# A smaller checkpoint is finished at once, which takes milliseconds.
_WORTH_DEFERRING_BYTES = 64 << 20
_BEST_DIRECTORY = "best"

logger = logging.getLogger(__name__)


class Keeper:
    """Keeps for one trainer; every method is collective over the world's ranks.

    Args:
        trainee: the trainer. engine: its.
        directory: the run's directory; None keeps nothing on disk (a bake in memory), and a signal
            then ends the process as it always would.
        world: this process.
        evaluate_every: steps between two evaluations, > 0; the last step is always evaluated.
        checkpoint_every: steps between two checkpoints, the last step included; 0 makes none but
            for a run that is told to stop.
        record: is told of every checkpoint.
        beside: what else a checkpoint holds.
        judged: the trainer again, where its weights are judged; needs a directory.

    Attributes:
        step: optimizer steps that the present weights have taken.
        abandoned: steps that were taken and gone back behind.
        best: the weights kept so far, or None.
        evaluation_due, verdict_due: an evaluation, a verdict of the present weights is owed.
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
        judged: Judged | None = None,
    ) -> None:
        self._trainee, self._engine, self._beside = trainee, engine, beside
        self._judged = judged
        self._directory, self._world = directory, world
        self._evaluate_every, self._checkpoint_every = evaluate_every, checkpoint_every
        self._record = record
        self._stop = StopRequest()
        self.step = self.abandoned = 0
        self.best: Best | None = None
        self.evaluation_due = self.verdict_due = False
        # What the last two checkpoints go back to: where the newest is damaged the other one needs
        # its own.
        self._pins: deque[Pin] = deque(maxlen=2)
        self._saved = False
        self._unfinished: tuple[UnfinishedCheckpoint, int] | None = None

    @property
    def taken(self) -> int:
        """Optimizer steps taken in all, abandoned ones included: it only rises."""
        return self.step + self.abandoned

    @property
    def pinned(self) -> Pin | None:
        """Where `go_back` goes."""
        return self._pins[-1] if self._pins else None

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint; whether there was one."""
        if self._directory is None:
            return False
        root = self._directory / CHECKPOINTS_DIRECTORY
        name = _latest_name(root, self._world)
        if name is None:
            return False
        state = self._restore(root / name)
        self.abandoned = state.get("abandoned", 0)
        self._pins.extend(Pin(*pin) for pin in state.get("pins", ()))
        if self._judged is not None and "lasting" in state:
            self._judged.load_lasting_state(state["lasting"])
        self._take_up_best(root / name)
        return True

    def pin(self) -> None:
        """Save the present weights as what to go back to; the pin before is released."""
        assert self._directory is not None
        best = self._directory / _BEST_DIRECTORY
        self._checkpoint(Pin(self.taken, self.step), best, wait=True)

    def go_back(self) -> None:
        """Restore the pinned checkpoint, and save that as the newest one.

        `Judged.lasting_state` and what it needs are as they were, the rest is the checkpoint's, the
        best weights too.

        Raises:
            InputError: on every rank, nothing having changed, when it is damaged.
        """
        assert self.pinned is not None
        assert self._directory is not None
        directory = self._directory / CHECKPOINTS_DIRECTORY / f"step_{self.pinned.number}"
        require_whole(directory, self._world)
        taken = self.taken
        self._restore(directory)
        self.abandoned = taken - self.step
        saved = self._checkpoint(self.pinned, directory / _BEST_DIRECTORY, wait=True)
        assert saved is not None
        self._take_up_best(saved)

    @contextmanager
    def stopping_between_steps(self) -> Iterator[None]:
        """Inside, SIGTERM and SIGINT wait for `after_step`."""
        if self._directory is None:
            yield
            return
        with stop_between_steps() as self._stop:
            try:
                yield
            except Exception:
                self._finish_alone()
                raise

    def after_step(self, step: int, total: int) -> None:
        """Evaluate and save what is due after ``step`` of ``total`` steps.

        Raises:
            RunStopped: on every rank, after a checkpoint, when any rank was told to stop.
        """
        if self._unfinished is not None and self._unfinished[0].is_hashed():
            self._finish_checkpoint()
        self.step, last, self._saved = step, step == total, False
        self.evaluation_due = last or step % self._evaluate_every == 0
        self.verdict_due = self._judged is not None and self._judged.is_verdict_due(step)
        told = self._stop.agreed(self._world)
        if (self.evaluation_due or self.verdict_due) and not told:
            self.settle()
            told = self._stop.agreed(self._world)
        every = self._checkpoint_every
        if not self._saved and (told or (every and (step % every == 0 or last))):
            self._checkpoint(self.pinned, wait=told or last)
        if told:
            raise RunStopped(f"step {self.step} of {total} is saved")

    def settle(self) -> None:
        """Evaluate and judge the present weights, as far as that is owed."""
        if self.evaluation_due:
            self.evaluate()
        if self.verdict_due:
            assert self._judged is not None
            self.verdict_due = False
            self._judged.judge(self.step)

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
        """Move the best weights to ``directory``, with a manifest; a node that does not see it gets
        a copy.

        What a run that was killed at its end left there is taken up, or replaced.
        """
        assert self._directory is not None
        if self._world.is_main:
            best = self._directory / _BEST_DIRECTORY
            if best.exists():
                durable.publish_directory(best, directory, replace=True)
            write_manifest(directory)
        self._world.barrier()
        copy_to_all(directory, self._world)

    def _checkpoint(self, pin: Pin | None, best: Path | None = None, *, wait: bool) -> Path | None:
        """Save all as it is; ``pin`` is what it goes back to, ``best`` is copied into it.

        Unless it is to ``wait``, a large one is hashed while training goes on, and finished between
        two later steps.
        """
        if self._directory is None:
            return None
        self._finish_checkpoint()
        if pin is not None:
            self._pins.append(pin)
        state = {
            **self._trainee.state_dict(),
            "step": self.step,
            "best": None if self.best is None else asdict(self.best),
            "evaluation_due": self.evaluation_due,
        }
        if self._judged is not None:
            state["lasting"] = self._judged.lasting_state()
            state["pins"] = [astuple(kept) for kept in self._pins]
            state |= {"abandoned": self.abandoned, "verdict_due": self.verdict_due}

        def write(directory: Path) -> list[str]:
            written = self._engine.save(directory)
            if self._world.is_main:
                if self._beside is not None:
                    self._beside.save(directory)
                if best is not None and best.exists():
                    shutil.copytree(best, directory / _BEST_DIRECTORY)
            return written

        root, pinned = self._directory / CHECKPOINTS_DIRECTORY, {kept.number for kept in self._pins}
        begun = begin_checkpoint(root, self.taken, write, state, self._world, pinned=pinned)
        self._saved, self._unfinished = True, (begun, self.taken)
        if wait or begun.size < _WORTH_DEFERRING_BYTES:
            return self._finish_checkpoint()
        begun.hash_meanwhile()
        return None

    def _finish_checkpoint(self) -> Path | None:
        """The checkpoint that is under way, if one is, with its name; collective."""
        if self._unfinished is None:
            return None
        (begun, number), self._unfinished = self._unfinished, None
        saved = begun.finish()
        if self._record is not None:
            self._record.checkpoint(number, saved)
        return saved

    def _finish_alone(self) -> None:
        """After an error: other ranks may not come, so only where there are none."""
        if self._world.size == 1:
            try:
                self._finish_checkpoint()
            except Exception as error:  # must not take the first one's place
                logger.warning("the last checkpoint could not be finished: %s", error)

    def _restore(self, directory: Path) -> dict[str, Any]:
        """Continue from what was saved there, but for what lasts; the state that was read."""
        with seen_by_all(directory, self._world) as seen:
            state = load_state(seen)
            self.step = state["step"]
            self._engine.load(seen)
            if self._beside is not None:
                self._beside.load(seen, self.step)
        self.best = read_best(state.get("best"))
        # Before there was one keeper, step 2 called it "due" and a prompt bake owed nothing.
        self.evaluation_due = state.get("evaluation_due", state.get("due", False))
        self.verdict_due = state.get("verdict_due", False)
        self._trainee.load_state_dict(state)
        return state

    def _take_up_best(self, checkpoint: Path) -> None:
        """Where a checkpoint holds the best weights, those are it, whatever came after."""
        assert self._directory is not None
        take_up(checkpoint / _BEST_DIRECTORY, self._directory / _BEST_DIRECTORY, self._world)


def drop_checkpoints(directory: Path, record: RunRecord | None = None) -> None:
    """Remove the checkpoints of a run that has its result; on rank 0 alone.

    What fails is a warning. ``latest`` still tells the last one's name; the registry is told that
    they are gone.
    """
    root = directory / CHECKPOINTS_DIRECTORY
    if not root.exists():
        return
    with spared("removal of checkpoints", f"{root} may go"):
        remove_checkpoints(root)
        if record is not None:
            record.no_checkpoints(root)


def _latest_name(root: Path, world: World) -> str | None:
    """`find_latest` as rank 0 sees it, on every rank."""
    found, fault = None, ""
    if world.is_main:
        try:
            found = find_latest(root)
        except InputError as error:
            fault = str(error)
    name, fault = world.broadcast_object([found.name if found else None, fault])
    if fault:
        raise InputError(fault)
    return name
