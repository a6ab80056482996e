"""What probes see where reward functions judge: greedy answers to held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from distforge.quietstar.asked import AskedItem
from distforge.quietstar.completions import as_table, keep_completions
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.episode_batches import StepExperience
from distforge.quietstar.step_log import StepLog
from distforge.quietstar.thought_loss import PolicyStatistics
from distforge.quietstar.writing import Writing
from distforge.reports.completions import COMPLETIONS_NAME
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.training.afterwards import spared
from distforge.training.distributed import World
from distforge.training.supervised import StepRecord


class WritingLog(StepLog):
    """As `ProbeLog`, of answers that are written whole.

    Args:
        heldout: `AskedItem`; the first ``config.probe.items`` are probed.
    """

    def __init__(
        self,
        config: LearnerConfig,
        writing: Writing,
        heldout: Sequence[ThoughtItem],
        world: World,
        logger: RunLogger,
        directory: Path,
    ) -> None:
        super().__init__(config, logger)
        self._writing, self._world, self._directory = writing, world, directory
        self._items = [cast(AskedItem, item) for item in heldout[: config.probe.items]]

    def log_step(
        self, step: StepRecord, experience: StepExperience, statistics: PolicyStatistics
    ) -> None:
        """As `StepLog`; now and then the completions are kept, and the best of them is shown."""
        super().log_step(step, experience, statistics)
        every = self._config.probe.completions_every
        if not every or not experience.completions or (step.step - 1) % every:
            return
        with spared(COMPLETIONS_NAME):
            keep_completions(experience.completions, step.step, self._directory)
        columns, rows = as_table(experience.completions)
        self._logger.log_table(step.step, names.RL_COMPLETIONS, columns, rows)
        best = max(experience.completions, key=lambda one: one.reward)
        written = " ".join(best.completion.split())[:200]
        self._logger.say(
            f"step {step.step}: {1 - experience.finished:.0%} of the answers were cut at the cap; "
            f"reward {best.reward:g} for: {written}"
        )

    def look(self, model: ThinkingModel, step: int) -> float:
        """The mean reward of ``model``'s greedy answers to the probed items, logged; collective."""
        batch = self._config.probe.batch_size
        answers = self._writing.answer(model, self._items, batch, self._world, step)
        mean = sum(answer.reward for answer in answers) / len(answers)
        self._logger.log(step, {names.RL_HELDOUT_REWARD: mean})
        first = " ".join(answers[0].text.split())[:200]
        self._logger.say(f"step {step}: held-out reward {mean:.3f}; an answer: {first}")
        return mean
