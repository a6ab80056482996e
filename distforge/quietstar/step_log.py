"""What is seen of every step of reinforcement learning, and the averages that it needs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from distforge.quietstar.advantages import unlike
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.episode_batches import StepExperience
from distforge.quietstar.thought_loss import PolicyStatistics
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.telemetry.metrics import RL, RLMetrics
from distforge.thinking.model import ThinkingModel
from distforge.training.supervised import StepRecord

_AVERAGED_EPISODES = 100
# What writing a token costs, where training on one costs 1: forward without backward.
_FORWARD = 1 / 3


class StepLog(ABC):
    """Logs steps, and what probes see of the model.

    Attributes:
        training_tokens: what the run has cost so far, in tokens trained on.
    """

    def __init__(self, config: LearnerConfig, logger: RunLogger) -> None:
        self._config, self._logger = config, logger
        self._rewards: deque[float] = deque(maxlen=_AVERAGED_EPISODES)
        self._latest: RLMetrics | None = None
        self.training_tokens = 0.0

    @abstractmethod
    def look(self, model: ThinkingModel, step: int) -> float:
        """Probe, log, and say how good the weights are; collective."""

    def log_step(
        self, step: StepRecord, experience: StepExperience, statistics: PolicyStatistics
    ) -> None:
        """Log one optimizer step."""
        groups = experience.rewards.view(-1, self._config.episodes.thoughts)
        self._rewards.extend(groups.mean(dim=1).tolist())
        self.training_tokens += experience.trained_tokens + _FORWARD * int(experience.lengths.sum())
        self._latest = RLMetrics(
            episode=step.step * self._config.episodes.batch_size,
            reward=float(experience.rewards.mean()),
            avg_reward=sum(self._rewards) / len(self._rewards),
            thought_length=float(experience.lengths.float().mean()),
            kl_divergence=statistics.kl,
            ess=statistics.ess,
        )
        known = ("episode", "reward", "avg_reward", "thought_length", "kl_divergence", "ess")
        self._logger.log(
            step.step,
            {
                **step.as_metrics(),
                **{RL[name]: getattr(self._latest, name) for name in known},
                names.RL_ENTROPY: statistics.entropy,
                names.RL_ANSWER_NLL: statistics.answer_nll,
                names.RL_GAP: statistics.gap,
                names.RL_MAX_GAP: statistics.max_gap,
                names.RL_REWARD_STD: float(groups.std(dim=1).mean()),
                names.RL_STALENESS: step.step - 1 - min(experience.versions),
                names.RL_ROLLOUT_SECONDS: experience.seconds,
                **self._speeds(step, experience),
                names.RL_FINISHED: experience.finished,
                names.RL_TOLD_APART: float(unlike(groups).float().mean()),
                **{
                    f"{names.RL_REWARD_PART}{re.sub(r'[^A-Za-z0-9]+', '_', name)}": value
                    for name, value in experience.components.items()
                },
            },
        )

    def _speeds(self, step: StepRecord, experience: StepExperience) -> dict[str, float]:
        """Of engines and learner apart, and the part of the step that the learner waited."""
        written = int(experience.lengths.sum())
        seconds = written / step.tokens_per_second
        learning = max(seconds - experience.waited, 1e-9)
        return {
            names.RL_ENGINE_SPEED: written / max(experience.seconds, 1e-9),
            names.RL_LEARNER_SPEED: experience.trained_tokens / learning,
            names.RL_WAITED: experience.waited / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; JSON."""
        return {"rewards": list(self._rewards), "training_tokens": self.training_tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the object that `state_dict` was taken from."""
        self._rewards = deque(state["rewards"], maxlen=_AVERAGED_EPISODES)
        # What a branch that was left has cost stays spent.
        self.training_tokens = max(self.training_tokens, state.get("training_tokens", 0.0))
