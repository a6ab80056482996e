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
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.episode_batches import EpisodeBatches
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.probe_log import ProbeLog
from distforge.quietstar.scorer import Scorer
from distforge.quietstar.thought_engine import EngineRecipe
from distforge.quietstar.thought_loss import ThoughtLoss
from distforge.rollouts import RolloutConfig, RolloutPool, open_pool
from distforge.telemetry import RunLogger
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.thinking.tags import Tags
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.guards import SKIPPED_FILE, StepGuard
from distforge.training.keeping import Best, Keeper
from distforge.training.run_record import RunRecord
from distforge.training.supervised import StepRecord, TrainingLoop


@dataclass(frozen=True)
class ThoughtOutcome:
    """How training ended: optimizer steps, episodes, and what was kept."""

    steps: int
    episodes: int
    best: Best


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
    ) -> None:
        if not heldout:
            raise InputError("there is no held-out item to probe the thoughts with")
        self._config, self._world, self._logger = config, world, logger
        self._tokenizer, self._tags = tokenizer, Tags.from_tokenizer(tokenizer)
        tags, self._plan = self._tags, EpisodePlan(items, config.episodes)
        self._recipe = EngineRecipe(
            copy.deepcopy(model.config),
            tags,
            config.thought,
            config.reward,
            config.positions,
            config.episodes.thoughts,
            _rollout_device(config.rollouts, world),
        )
        reference = copy.deepcopy(model).to(world.device)
        kl_coefficient = config.optimizer.muon_grokfast.kl_coefficient
        self.loss = ThoughtLoss(config.objective, tags, config.thought, reference, kl_coefficient)
        self.probe_log = ProbeLog(config, tokenizer, heldout, reference, world, logger)
        loop = config.episodes.loop
        self.engine = TrainingEngine(
            model,
            lambda module: build_optimizer(module, config.optimizer),
            config.engine,
            world,
            loop.micro_batches,
            self.loss,
            self.loss.veto if config.rollouts.staleness else None,
        )
        self._advantages = Advantages(config.objective.baseline, config.objective.ema_decay)
        wants_scorer = config.reward.kind == "prediction_gain"
        self._scorer = Scorer(config.reward.scorer_decay) if wants_scorer else None
        self._guard = StepGuard(config.guard, world, directory / SKIPPED_FILE)
        self._epoch = max(1, len(items) // config.episodes.batch_size)
        self._pool: RolloutPool | None = None
        self._pool_state: dict[str, object] | None = None
        every = config.probe.every_steps, config.checkpoint_every
        self._keeper = Keeper(self, self.engine, directory, world, *every, record, self._scorer)

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
                self.engine,
                self._advantages,
                self._config.episodes,
                self._tags,
                self._world,
                self._epoch,
                self._scorer,
            )
            loop = TrainingLoop(self.engine, source, self._config.episodes.loop, self._guard)
            loop.step = self._keeper.step
            # The baked model is the first that could be kept.
            if self._keeper.evaluation_due or self._keeper.best is None:
                self._keeper.evaluate()
            progress = self._logger.progress(loop.total_steps, "reinforcing", loop.step)
            with progress:
                self.loss.progress = loop.step / loop.total_steps
                for step in loop.steps():
                    self._after_step(step, loop.total_steps, source)
                    self.loss.progress = loop.step / loop.total_steps
        assert self._keeper.best is not None, "the last step is always probed"
        steps = self._keeper.step
        episodes = steps * self._config.episodes.batch_size
        return ThoughtOutcome(steps, episodes, self._keeper.best)

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
        number = self._config.episodes.requests_per_step
        with open_pool(self._config.rollouts, self._recipe, self._plan, number) as pool:
            if self._pool_state is not None:
                pool.load_state_dict(self._pool_state)
            yield pool

    def _after_step(self, step: StepRecord, total: int, source: EpisodeBatches) -> None:
        assert source.last is not None
        statistics = self.loss.take_statistics(self._world)
        self.probe_log.log_step(step, source.last, statistics)
        self._keeper.after_step(step.step, total)

    # What the keeper asks for.

    def evaluate(self, step: int) -> None:
        """Probe the thoughts on held-out items; log, and keep the weights if they are the best."""
        with self.engine.whole_model() as model:
            assert isinstance(model, ThinkingModel)
            scores = self.probe_log.probe(model)
            self.probe_log.log_probe(step, scores)
            if self._keeper.is_best(scores.score):
                self._keeper.keep(scores.score, model, self._tokenizer)

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


def _rollout_device(config: RolloutConfig, world: World) -> str:
    """Actors compute where Ray puts them; without them the learner's process does it all."""
    if config.num_actors == 0:
        return str(world.device)
    return "cuda" if config.gpus_per_actor else "cpu"
