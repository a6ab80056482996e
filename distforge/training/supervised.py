"""The one training loop: making the champion and both kinds of baking run through it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from distforge.data.dataset import BatchPlan, TokenRows, read_micro_batch
from distforge.errors import InputError
from distforge.optim.schedule import ScheduleConfig, lr_factor
from distforge.telemetry import metrics as names
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.guards import GuardConfig, SkippedStepError, StepGuard
from distforge.training.step_result import StepResult


@dataclass(frozen=True)
class SupervisedConfig:
    """How long and in what portions to train.

    epochs: passes over the data, > 0.
    max_steps: above 0, a number of steps that overrides ``epochs``.
    batch_size: examples a step, over all ranks and micro-batches.
    micro_batches: portions a step is computed in, over all ranks; a multiple of the world size.
        The curve does not depend on how many ranks share them.
    schedule: learning rate over the whole run.
    seed: order of the examples.
    """

    epochs: float = 3.0
    max_steps: int = 0
    batch_size: int = 32
    micro_batches: int = 4
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps < 0 or (self.max_steps == 0 and not self.epochs > 0):
            raise InputError(
                f"epochs is {self.epochs} and max_steps {self.max_steps}; "
                "expected positive epochs, or positive max_steps"
            )
        if not 0 < self.micro_batches <= self.batch_size:
            raise InputError(
                f"micro_batches is {self.micro_batches}; expected 1 to batch_size "
                f"({self.batch_size})"
            )


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: ``step`` counts from 1, ``epoch`` is fractional.

    ``skipped``: the guard kept this step from the weights; ``skipped_steps``: so many did so far.
    """

    step: int
    epoch: float
    result: StepResult
    tokens_per_second: float
    skipped: bool = False
    skipped_steps: int = 0

    def as_metrics(self) -> dict[str, float]:
        """The metrics of this step by full name."""
        measured = self.result.optimizer
        of_the_optimizer = (
            {
                names.OPTIMIZER_UPDATE_RMS: measured.update_rms,
                names.OPTIMIZER_GRAD_EMA_COSINE: measured.grad_ema_cosine,
                names.OPTIMIZER_NS_RESIDUAL: measured.ns_residual,
            }
            if measured
            else {}
        )
        return {
            names.TRAIN_LOSS: self.result.loss,
            names.TRAIN_TOKEN_ACCURACY: self.result.token_accuracy,
            names.TRAIN_LEARNING_RATE: self.result.lr,
            names.TRAIN_GRAD_NORM: self.result.grad_norm,
            names.TRAIN_TOKENS_PER_SECOND: self.tokens_per_second,
            names.TRAIN_EPOCH: self.epoch,
            names.TRAIN_SKIPPED_STEPS: self.skipped_steps,
            names.OPTIMIZER_CLIPPED_HEADS: self.result.clipped_heads,
            **of_the_optimizer,
        }


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step trains on.

    ``micro_batches`` are this rank's; ``targets`` and ``tokens`` count those of all ranks. ``ids``
    name the examples of all ranks, by micro-batch, for the record of a step that is skipped.
    """

    micro_batches: Sequence[Mapping[str, Tensor]]
    targets: int
    tokens: int
    ids: Sequence[Sequence[str]] = ()


class BatchSource(Protocol):
    """Where a loop's steps come from: the same steps for the same seed, wherever one begins."""

    steps_per_epoch: int

    def steps(self, first: int) -> Iterator[StepBatch]:
        """The steps from number ``first`` (from 0) on, without end.

        Each is made when it is asked for, so it may depend on the weights as they are then.
        """
        ...


class TrainingLoop:
    """Steps over a `BatchSource`, resumable at any step.

    ``step`` is the number of optimizer steps taken; setting it (after a checkpoint was loaded)
    continues from there. A step that ``guard`` skips counts as one; `DivergedError` ends a run of
    too many. ``lr_scale`` multiplies the schedule's factor.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        source: BatchSource,
        config: SupervisedConfig,
        guard: StepGuard,
    ) -> None:
        self.guard = guard
        self.engine = engine
        self._source = source
        self._config = config
        self.steps_per_epoch = source.steps_per_epoch
        self.total_steps = config.max_steps or max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0
        self.lr_scale = 1.0

    def steps(self) -> Iterator[StepRecord]:
        """Train from ``step`` to ``total_steps``, yielding after every optimizer step."""
        batches = self._source.steps(self.step)
        while self.step < self.total_steps:
            yield self._train(batches)

    def epoch_steps(self) -> Iterator[StepRecord]:
        """Train to the end of the current epoch, or of the run if that comes first."""
        for record in self.steps():
            yield record
            if self.step % self.steps_per_epoch == 0:
                return

    def _train(self, batches: Iterator[StepBatch]) -> StepRecord:
        began = time.perf_counter()
        batch = next(batches)
        skipped = False
        try:
            result = self.engine.train_step(
                batch.micro_batches,
                self.lr_scale * lr_factor(self._config.schedule, self.step, self.total_steps),
                batch.targets,
                self.guard.loss_limit,
            )
            self.guard.accept(result.loss)
        except SkippedStepError as error:
            result, skipped = error.result, True
            self.guard.skip(self.step + 1, error, batch.ids)
        self.step += 1
        return StepRecord(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            result=result,
            tokens_per_second=batch.tokens / (time.perf_counter() - began),
            skipped=skipped,
            skipped_steps=self.guard.skipped,
        )


class SupervisedLoop(TrainingLoop):
    """The loop over rows of tokens; its plan of batches depends on seed and step alone."""

    def __init__(
        self,
        engine: TrainingEngine,
        dataset: TokenRows,
        config: SupervisedConfig,
        world: World,
        pad_token_id: int,
        guard: StepGuard | None = None,
    ) -> None:
        source = ExampleBatches(dataset, config, world, pad_token_id)
        super().__init__(engine, source, config, guard or StepGuard(GuardConfig(), world))


class ExampleBatches:
    """The `BatchSource` of supervised training: this rank's part of every step of a `BatchPlan`."""

    def __init__(
        self, dataset: TokenRows, config: SupervisedConfig, world: World, pad_token_id: int
    ) -> None:
        self._dataset = dataset
        self._world = world
        self._pad_token_id = pad_token_id
        self._plan = BatchPlan(
            dataset.lengths, config.batch_size, config.micro_batches, config.seed
        )
        self.steps_per_epoch = self._plan.steps_per_epoch

    def steps(self, first: int) -> Iterator[StepBatch]:
        """See `BatchSource`."""
        for parts in self._plan.steps(first):
            indices = [index for part in parts for index in part]
            mine = parts[self._world.rank :: self._world.size]
            yield StepBatch(
                [read_micro_batch(self._dataset, part, self._pad_token_id) for part in mine],
                targets=sum(self._dataset.target_counts[index] for index in indices),
                tokens=sum(self._dataset.lengths[index] for index in indices),
                ids=[[self._dataset.ids[index] for index in part] for part in parts],
            )
