"""Supervised baking: the reasoning traces go into the weights, watched by free generation.

`PromptBakingTrainer` is the specification's name for it; what bakes a prompt is `PromptBaker`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.config import Step1Config
from distforge.baking.supervised.convergence import Convergence, check_convergence
from distforge.data import STRATEGIES, USAGE_TYPES, Example, ReasoningDataset, of_split
from distforge.errors import InputError
from distforge.evaluation.generation import SPARE_TOKENS
from distforge.evaluation.scoring import Answered, Scores, answer_questions, stratified, summarize
from distforge.models.context import context_length
from distforge.optim import build_optimizer
from distforge.rendering import Asked, Renderer
from distforge.telemetry import BakingMetrics, RunLogger
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.guards import SKIPPED_FILE, StepGuard
from distforge.training.keeping import Keeper
from distforge.training.kept import Best
from distforge.training.run_record import RunRecord
from distforge.training.shared_rows import tokenize_together
from distforge.training.supervised import StepRecord, SupervisedLoop


@dataclass(frozen=True)
class TrainingOutcome:
    """How training ended: optimizer steps taken, what was kept, and whether it stopped early."""

    steps: int
    best: Best
    stopped_early: bool


class PromptBakingTrainer:
    """Bakes the seven strategies into a model by training on verified traces.

    Args:
        model, tokenizer: the champion, thinking tokens added already.
        examples: both splits; the held-out ones are only ever asked, never trained on.
        config: step 1's configuration.
        world: this process; every method is collective.
        logger: where metrics go.
        directory: the run's directory; checkpoints and the best weights are kept in it.
        record: is told of every checkpoint.

    Raises:
        InputError: no examples of a split, or one longer than the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        config: Step1Config,
        world: World,
        logger: RunLogger,
        directory: Path,
        record: RunRecord | None = None,
    ) -> None:
        self._config, self._world, self._logger = config, world, logger
        self._tokenizer, self._directory = tokenizer, directory
        self.heldout = of_split(examples, "heldout")
        if count := config.evaluation.heldout_questions:
            self.heldout = stratified(self.heldout, count)
        train = of_split(examples, "train")
        if not len(train) or not len(self.heldout):
            raise InputError(
                f"the data hold {len(train)} training and {len(self.heldout)} held-out examples; "
                "expected some of each, so name a directory with a file for each split, or one "
                "file of both"
            )
        self.dataset = tokenize_together(
            train,
            tokenizer,
            config.data.max_length,
            world,
            direct=[True] * len(train) if config.target == "direct" else None,
        )
        self.max_new_tokens = generation_room(model, tokenizer, self.dataset, self.heldout)
        self.validation = stratified(self.heldout, config.evaluation.validation_questions)
        self.engine = TrainingEngine(
            model,
            lambda module: build_optimizer(module, config.optimizer),
            config.engine,
            world,
            config.training.micro_batches,
        )
        self.loop = SupervisedLoop(
            self.engine,
            self.dataset,
            config.training,
            world,
            tokenizer.pad_token_id,
            StepGuard(config.guard, world, directory / SKIPPED_FILE),
        )
        self._losses: list[float] = []
        self._last_lr = 0.0
        self._stopped = False
        # What the last validation missed, and how often the run was lengthened for it.
        self._shortfalls: list[str] = []
        self._extended = 0
        every = config.evaluation.every_steps, config.checkpoint_every
        self._keeper = Keeper(self, self.engine, directory, world, *every, record)

    def train(self) -> TrainingOutcome:
        """Train to the end or to convergence, from the last checkpoint if there is one.

        Raises `RunStopped` on every rank, after a checkpoint, when any rank was told to stop.
        """
        self._keeper.resume()
        self.loop.step = self._keeper.step
        if self._keeper.evaluation_due:
            self._keeper.evaluate()
        with self._keeper.stopping_between_steps():
            self._train_to_end()
            while self._shortfalls and self._extended < self._config.evaluation.extensions:
                self._extend()
                self._train_to_end()
        return self._outcome()

    def keep(self) -> TrainingOutcome:
        """Judge and keep the model as it is, without a step."""
        self._keep(self.validate().accuracy_overall)
        return self._outcome()

    def train_epoch(self) -> float:
        """Train to the end of the epoch (evaluating when due); the mean loss of the steps taken."""
        losses = []
        for record in self.loop.epoch_steps():
            if not record.skipped:
                losses.append(record.result.loss)
            self._after_step(record)
            if self._stopped:
                break
        return _mean(losses)

    def validate(self) -> Scores:
        """Ask the validation questions, without strategy prompts, and judge the answers."""
        return summarize(self.ask(self.validation))

    def ask(self, examples: Sequence[Example], *, prompted: bool = False) -> list[Answered]:
        """Free generations of the model as it is now, judged."""
        with self.engine.whole_model() as model:
            return answer_questions(
                model,
                self._tokenizer,
                examples,
                self._world,
                max_new_tokens=self.max_new_tokens,
                batch_size=self._config.evaluation.batch_size,
                prompted=prompted,
            )

    def check_convergence(self, scores: Scores) -> Convergence:
        """Hold scores against the configured targets."""
        return check_convergence(
            self._config.convergence,
            scores.accuracy_overall,
            scores.accuracy,
            scores.token_usage,
        )

    def save_baked_model(self, directory: Path) -> None:
        """Move the best weights seen (not the last ones) to ``directory``, with a manifest.

        Collective. In the run's own directory, what a run that was killed at its end left is
        taken up or replaced; elsewhere, raises `InputError` when ``directory`` exists.
        """
        if self._world.is_main and directory.parent != self._directory and directory.exists():
            raise InputError(f"{directory} exists; remove it or save elsewhere")
        self._keeper.take_best(directory)

    def _train_to_end(self) -> None:
        total = self.loop.total_steps
        with self._logger.progress(total, "baking", self.loop.step):
            while self.loop.step < total and not self._stopped:
                self.train_epoch()

    def _extend(self) -> None:
        """Half as many steps again, over which the learning rate falls once more."""
        total = self.loop.total_steps + math.ceil(self.loop.total_steps / 2)
        missed = "; ".join(self._shortfalls)
        self._logger.say(f"step {self.loop.step}: {missed}; training goes on to step {total}")
        self.loop.total_steps = total
        self._extended += 1

    def _after_step(self, record: StepRecord) -> None:
        if not record.skipped:
            self._losses.append(record.result.loss)
        self._last_lr = record.result.lr
        self._logger.log(record.step, record.as_metrics())
        self._keeper.after_step(record.step, self.loop.total_steps)

    def _outcome(self) -> TrainingOutcome:
        assert self._keeper.best is not None, "the last step is always evaluated"
        return TrainingOutcome(self._keeper.step, self._keeper.best, self._stopped)

    # What the keeper asks for.

    def evaluate(self, step: int) -> None:
        """Answer the validation questions; log, and keep the weights if they are the best."""
        scores = self.validate()
        convergence = self.check_convergence(scores)
        self._logger.log_baking_epoch(
            step,
            BakingMetrics(
                epoch=step / self.loop.steps_per_epoch,
                loss=_mean(self._losses),
                learning_rate=self._last_lr,
                accuracy_overall=scores.accuracy_overall,
                accuracy=dict.fromkeys(STRATEGIES, math.nan) | scores.accuracy,
                token_usage=dict.fromkeys(USAGE_TYPES, math.nan) | scores.token_usage,
                convergence_progress=convergence.progress,
            ),
        )
        self._losses.clear()
        self._shortfalls = list(convergence.shortfalls)
        if convergence.converged and self._config.evaluation.stop_when_converged:
            self._stopped = self.check_convergence(summarize(self.ask(self.heldout))).converged
        if self._stopped or self._keeper.is_best(scores.accuracy_overall):
            self._keep(scores.accuracy_overall)

    def state_dict(self) -> dict[str, Any]:
        """See `Trainee`."""
        return {
            "losses": self._losses,
            "lr": self._last_lr,
            "stopped": self._stopped,
            "shortfalls": self._shortfalls,
            "extended": self._extended,
            "total_steps": self.loop.total_steps,
            "guard": self.loop.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Trainee`."""
        self._losses, self._last_lr = state["losses"], state["lr"]
        self._stopped = state["stopped"]
        # Not in checkpoints from before runs could be lengthened.
        self._shortfalls = state.get("shortfalls", [])
        self._extended = state.get("extended", 0)
        self.loop.total_steps = state.get("total_steps", self.loop.total_steps)
        self.loop.guard.load_state_dict(state["guard"])

    def _keep(self, accuracy: float) -> None:
        with self.engine.whole_model() as model:
            self._keeper.keep(accuracy, model, self._tokenizer)


def _mean(losses: Sequence[float]) -> float:
    """NaN when nothing was measured: every step was skipped."""
    return sum(losses) / len(losses) if losses else math.nan


def generation_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: ReasoningDataset,
    heldout: Sequence[Example],
) -> int:
    """New tokens a held-out question may need: the longest trace of the data and some to spare.

    Raises:
        InputError: an example, or a held-out question with that room, exceeds the model's context.
    """
    context = context_length(model)
    room = max(dataset.target_counts) + SPARE_TOKENS
    if context is None:
        return room
    if max(dataset.lengths) > context:
        raise InputError(
            f"an example has {max(dataset.lengths)} tokens, the model's context is {context}; set "
            f"data.max_length to {context} or less (longer examples are then left out)"
        )
    asked = Renderer(tokenizer).prompts([Asked(e.question, turns=e.turns) for e in heldout])
    free = context - max(len(ids) for ids in asked)
    if free < 1:
        raise InputError(f"a held-out question fills the model's context of {context} tokens")
    return min(room, free)
