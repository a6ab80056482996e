"""Reinforcement learning on thoughts, over the one training engine and loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.optim import build_optimizer
from distforge.quietstar.adapter import Adapter, MergedSource
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import LearnerConfig, RewardConfig
from distforge.quietstar.engines import engine_recipe, request_plan
from distforge.quietstar.episode_batches import EpisodeBatches
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.probe_log import ProbeLog
from distforge.quietstar.rollback import VERDICT_VALUES, Course, Judge, Rollback
from distforge.quietstar.scorer import Scorer
from distforge.quietstar.step_log import StepLog
from distforge.quietstar.thought_loss import ThoughtLoss
from distforge.quietstar.writing import Writing
from distforge.quietstar.writing_log import WritingLog
from distforge.rollouts import RolloutPool, open_pool
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.thinking.positions import with_places
from distforge.thinking.tags import Tags
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.guards import SKIPPED_FILE, StepGuard
from distforge.training.keeping import Keeper
from distforge.training.kept import Best
from distforge.training.memory import shape_of
from distforge.training.run_record import RunRecord
from distforge.training.supervised import StepRecord, TrainingLoop


@dataclass(frozen=True)
class ThoughtOutcome:
    """How training ended.

    steps, episodes: taken in all, those that were rolled back included. best: what was kept; its
    step is one of the training that was not. rollbacks: in order. ended_by_verdict: THEATRE ended
    training after the last retry, and what was kept is what passed last, or the start.
    """

    steps: int
    episodes: int
    best: Best
    rollbacks: tuple[Rollback, ...] = ()
    ended_by_verdict: bool = False


class ThoughtTrainer:
    """Trains a model to think before it predicts.

    Args:
        model, tokenizer: the baked model, thinking; trained in place.
        items: to learn from. heldout: only ever probed.
        config: see `LearnerConfig`.
        world: this process; every method is collective.
        logger: where metrics go.
        directory: the run's; checkpoints and the best weights are kept in it.
        record: is told of every checkpoint.
        judge: is asked on the way, as ``config.rollback`` says.
        reference: the baked model as it stays, where the caller has a copy; one is made otherwise.
        writing: how answers are written and judged, where reward functions do that; then items are
            `AskedItem`.

    Raises:
        InputError: no items of a kind, or micro-batches that do not divide by the ranks.
    """

    def __init__(
        self,
        model: ThinkingModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[ThoughtItem],
        heldout: Sequence[ThoughtItem],
        config: LearnerConfig,
        world: World,
        logger: RunLogger,
        directory: Path,
        record: RunRecord | None = None,
        judge: Judge | None = None,
        reference: ThinkingModel | None = None,
        writing: Writing | None = None,
    ) -> None:
        if not heldout:
            raise InputError("there is no held-out item to probe the thoughts with")
        self._config, self._world, self._logger = config, world, logger
        self._tokenizer, self._writing = tokenizer, writing
        self._tags = writing.tags if writing else Tags.from_tokenizer(tokenizer, model=model.lm)
        tags, items = self._tags, with_places(items, config.positions)
        self._plan = EpisodePlan(items, config.episodes)
        self._recipe = engine_recipe(model, tags, items, config, world)
        kl_coefficient = config.optimizer.muon_grokfast.kl_coefficient
        is_adapted = config.adapter == "lora"
        if reference is None:
            # With its adapter off, the model itself is what it was.
            reference = model if is_adapted and writing else copy.deepcopy(model)
        reference.to(world.device)
        self.probe_log: StepLog = (
            WritingLog(config, writing, heldout, world, logger, directory)
            if writing
            else ProbeLog(config, tokenizer, heldout, reference, world, logger)
        )
        adapter = Adapter(model, config.lora, config.episodes.seed) if is_adapted else None
        self.loss = ThoughtLoss(config.objective, tags, config.thought, reference, kl_coefficient)
        self.engine = self._engine(model)
        self._source = MergedSource(self.engine, adapter) if adapter else self.engine
        self._advantages = Advantages(config.objective.baseline, config.objective.ema_decay)
        self._scorer = _scorer(config.reward)
        self._guard = StepGuard(config.guard, world, directory / SKIPPED_FILE)
        self._epoch = max(1, len(items) // config.episodes.batch_size)
        self._hidden_size = shape_of(model.lm.config)["hidden_size"]
        self._loop: TrainingLoop
        self._pool: RolloutPool | None = None
        self._pool_state: dict[str, object] | None = None
        self._judge, self._course = judge, Course(config.rollback)
        self._is_judged = judge is not None and config.rollback.every_steps > 0
        self._keeper = Keeper(
            self,
            self.engine,
            directory,
            world,
            config.probe.every_steps,
            config.checkpoint_every,
            record,
            self._scorer,
            self if self._is_judged else None,
        )

    def _engine(self, model: ThinkingModel) -> TrainingEngine:
        config = self._config
        return TrainingEngine(
            model,
            lambda module: build_optimizer(module, config.optimizer),
            config.engine,
            self._world,
            config.episodes.portions,
            self.loss,
            self.loss.veto if config.rollouts.staleness else None,
        )

    def train(self) -> ThoughtOutcome:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            RunStopped: on every rank, after a checkpoint, when any rank was told to stop.
            RolloutError: rollouts cannot go on.
        """
        self._keeper.resume()
        with self._open_pool() as self._pool, self._keeper.stopping_between_steps():
            source = EpisodeBatches(
                self._plan,
                self._pool,
                self._source,
                self._advantages,
                self._config.episodes,
                self._tags,
                self._world,
                self._epoch,
                self._hidden_size,
                self._scorer,
                self._writing,
                self._config.reward.signal_steps,
            )
            loop = TrainingLoop(self.engine, source, self._config.episodes.loop, self._guard)
            self._loop = loop
            self._start()
            with self._logger.progress(loop.total_steps, "reinforcing", self._keeper.step):
                while self._keeper.step < loop.total_steps and not self._course.ended:
                    self._train(loop, source)
            if self._course.ended:
                self._probe(self._keeper.step, keep=True)
        assert self._keeper.best is not None, "the last step is always probed"
        steps = self._keeper.taken
        return ThoughtOutcome(
            steps=steps,
            episodes=steps * self._config.episodes.batch_size,
            best=self._keeper.best,
            rollbacks=self._course.rollbacks,
            ended_by_verdict=self._course.ended,
        )

    def save_model(self, directory: Path) -> Path:
        """Move the best weights seen (not the last ones) to ``directory``; collective."""
        self._keeper.take_best(directory)
        return directory

    @contextmanager
    def _open_pool(self) -> Iterator[RolloutPool | None]:
        """Rank 0 alone has one."""
        if not self._world.is_main:
            yield None
            return
        config, number = self._config.rollouts, self._config.episodes.requests_per_step
        asked = request_plan(self._plan, self._tags, config)
        with open_pool(config, self._recipe, asked, number) as pool:
            if self._pool_state is not None:
                pool.load_state_dict(self._pool_state)
            yield pool

    def _start(self) -> None:
        """Catch up with what is owed, and save what can be gone back to."""
        course, step = self._course, self._keeper.step
        if course.ended or (course.rollbacks and course.rollbacks[-1].to == step):
            # Killed right after it went back, the run may not have logged it.
            self._logger.log(self._keeper.taken, {names.RL_ROLLED_BACK_TO: step})
        self._follow_course()
        # The baked model is the first that could be kept.
        if self._keeper.best is None:
            self._keeper.evaluation_due = True
        self._keeper.settle()
        if self._is_judged and self._keeper.pinned is None:
            self._keeper.pin()

    def _train(self, loop: TrainingLoop, source: EpisodeBatches) -> None:
        """To the end, or until the keeper has gone back."""
        loop.step = self._keeper.step
        self.loss.progress = loop.step / loop.total_steps
        for step in loop.steps():
            self._after_step(step, loop.total_steps, source)
            if self._keeper.step != loop.step:
                return
            self.loss.progress = loop.step / loop.total_steps

    def _after_step(self, step: StepRecord, total: int, source: EpisodeBatches) -> None:
        assert source.last is not None
        statistics = self.loss.take_statistics(self._world)
        self.probe_log.log_step(step, source.last, statistics)
        self._keeper.after_step(step.step, total)

    # What the keeper asks for.

    def evaluate(self, step: int) -> None:
        """Probe the thoughts on held-out items; log, and keep the weights if they are the best."""
        self._probe(step, keep=False)

    def _probe(self, step: int, *, keep: bool) -> None:
        with self._source.whole_model() as model:
            assert isinstance(model, ThinkingModel)
            score = self.probe_log.look(model, step)
            if keep or self._keeper.is_best(score):
                self._keeper.keep(score, model, self._tokenizer)

    def is_verdict_due(self, step: int) -> bool:
        """See `Judged`."""
        return self._course.is_due(step, self._loop.total_steps)

    def judge(self, step: int) -> None:
        """See `Judged`."""
        assert self._judge is not None
        with self._source.whole_model() as model:
            assert isinstance(model, ThinkingModel)
            verdict = self._judge(model, step, self._loop.total_steps)
        # Ranks that disagreed would wait for each other for ever.
        outcome = self._world.broadcast_object(verdict.outcome)
        self._logger.log(step, {names.RL_VERDICT: VERDICT_VALUES[outcome]})
        decision = self._course.note(outcome)
        if decision == "pin":
            self._keeper.pin()
        elif decision != "go on":
            self._go_back(step, end=decision == "end")

    def _go_back(self, step: int, *, end: bool) -> None:
        assert self._keeper.pinned is not None
        to = self._keeper.pinned.step
        said = f"back from step {step} to step {to}, {'which passed' if to else 'the start'}"
        if end:
            self._course.ended = True
            said = f"{said}, where training ends: no retry is left"
        else:
            said = f"{said}; from there on {self._course.go_back(step, to).changed}"
        self._keeper.go_back()
        self._logger.log(step, {names.RL_ROLLED_BACK_TO: to})
        self._logger.say(said)
        self._follow_course()

    def _follow_course(self) -> None:
        """Do what the rollbacks so far have changed."""
        course, optimizer = self._course, self._config.optimizer
        self.loss.kl_coefficient = course.kl_factor * optimizer.muon_grokfast.kl_coefficient
        self._loop.lr_scale, self._plan.redraws = course.lr_factor, course.redraws
        self._logger.roll_back(self._keeper.abandoned, course.branch)

    def lasting_state(self) -> dict[str, Any]:
        """See `Judged`."""
        assert self._judge is not None
        return {"course": self._course.state_dict(), "judge": self._judge.state_dict()}

    def load_lasting_state(self, state: dict[str, Any]) -> None:
        """See `Judged`."""
        assert self._judge is not None
        self._course.load_state_dict(state["course"])
        self._judge.load_state_dict(state["judge"])

    def state_dict(self) -> dict[str, Any]:
        """See `Trainee`."""
        return {
            "guard": self._guard.state_dict(),
            "advantages": self._advantages.state_dict(),
            "observer": self.probe_log.state_dict(),
            "pool": None if self._pool is None else self._pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Trainee`."""
        self._guard.load_state_dict(state["guard"])
        self._advantages.load_state_dict(state["advantages"])
        self.probe_log.load_state_dict(state["observer"])
        self._pool_state = state["pool"]
        if self._pool is not None:
            self._pool.roll_back(state["pool"])


def _scorer(config: RewardConfig) -> Scorer | None:
    return Scorer(config.scorer_decay) if config.kind == "prediction_gain" else None
