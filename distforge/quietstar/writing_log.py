"""What probes see where reward functions judge: greedy answers to held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from distforge.quietstar.asked import AskedItem
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.step_log import StepLog
from distforge.quietstar.writing import Writing
from distforge.telemetry import RunLogger
from distforge.telemetry import metrics as names
from distforge.thinking.items import ThoughtItem
from distforge.training.distributed import World


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
    ) -> None:
        super().__init__(config, logger)
        self._writing, self._world = writing, world
        self._items = [cast(AskedItem, item) for item in heldout[: config.probe.items]]

    def look(self, model: nn.Module, step: int) -> float:
        """The mean reward of ``model``'s greedy answers to the probed items, logged; collective."""
        batch = self._config.probe.batch_size
        answers = self._writing.answer(model, self._items, batch, self._world, step)
        mean = sum(answer.reward for answer in answers) / len(answers)
        self._logger.log(step, {names.RL_HELDOUT_REWARD: mean})
        first = " ".join(answers[0].text.split())[:200]
        self._logger.say(f"step {step}: held-out reward {mean:.3f}; an answer: {first}")
        return mean
