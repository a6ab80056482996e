"""The one supervised loop: making the champion and baking both run through it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from distforge.data.dataset import BatchPlan, ReasoningDataset, read_micro_batch
from distforge.errors import InputError
from distforge.optim.schedule import ScheduleConfig, lr_factor
from distforge.telemetry import metrics as names
from distforge.training.distributed import World
from distforge.training.engine import StepResult, TrainingEngine
from distforge.training.guards import GuardConfig, SkippedStepError, StepGuard


@dataclass(frozen=True)
class SupervisedConfig:
    """How long and in what portions to train.

    epochs: passes over the data, > 0; ``max_steps`` > 0 overrides it with a number of steps.
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


class SupervisedLoop:
    """Steps over a `ReasoningDataset`, resumable at any step.

    ``step`` is the number of optimizer steps taken; setting it (after a checkpoint was loaded)
    continues from there, as the plan of batches depends on seed and step alone. A step that
    ``guard`` skips counts as one; `DivergedError` ends a run of too many.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        dataset: ReasoningDataset,
        config: SupervisedConfig,
        world: World,
        pad_token_id: int,
        guard: StepGuard | None = None,
    ) -> None:
        self.guard = guard or StepGuard(GuardConfig(), world)
        self._engine = engine
        self._dataset = dataset
        self._config = config
        self._world = world
        self._pad_token_id = pad_token_id
        self._plan = BatchPlan(
            dataset.lengths, config.batch_size, config.micro_batches, config.seed
        )
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.total_steps = config.max_steps or max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0

    def steps(self) -> Iterator[StepRecord]:
        """Train from ``step`` to ``total_steps``, yielding after every optimizer step."""
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            for micro_batches in self._plan.epoch(epoch, first):
                yield self._train(micro_batches)
                if self.step >= self.total_steps:
                    return

    def epoch_steps(self) -> Iterator[StepRecord]:
        """Train to the end of the current epoch, or of the run if that comes first."""
        for record in self.steps():
            yield record
            if self.step % self.steps_per_epoch == 0:
                return

    def _train(self, micro_batches: list[list[int]]) -> StepRecord:
        began = time.perf_counter()
        targets = sum(self._dataset.target_counts[i] for part in micro_batches for i in part)
        tokens = sum(self._dataset.lengths[i] for part in micro_batches for i in part)
        mine = micro_batches[self._world.rank :: self._world.size]
        skipped = False
        try:
            result = self._engine.train_step(
                [read_micro_batch(self._dataset, part, self._pad_token_id) for part in mine],
                lr_factor(self._config.schedule, self.step, self.total_steps),
                targets,
                self.guard.loss_limit,
            )
            self.guard.accept(result.loss)
        except SkippedStepError as error:
            result, skipped = error.result, True
            ids = [[self._dataset.examples[i].id for i in part] for part in micro_batches]
            self.guard.skip(self.step + 1, error, ids)
        self.step += 1
        return StepRecord(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            result=result,
            tokens_per_second=tokens / (time.perf_counter() - began),
            skipped=skipped,
            skipped_steps=self.guard.skipped,
        )
