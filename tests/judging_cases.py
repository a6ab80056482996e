"""A judge that says what it is told to, and a run small enough to be rolled back in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distforge.handoff.verdict import MEASURES, PASS, THEATRE, Measure, Outcome, Verdict
from distforge.quietstar.config import EpisodeConfig, LearnerConfig, ProbeConfig, RollbackConfig
from distforge.thinking.model import ThinkingModel
from tests.thinking_cases import learner_config

STEPS = 4


def make_verdict(outcome: Outcome) -> Verdict:
    """One whose bounds mean that outcome."""
    low, high = {PASS: (0.5, 0.9), THEATRE: (0.0, 0.2)}.get(outcome, (0.1, 0.9))
    measure = Measure(estimate=(low + high) / 2, low=low, high=high, threshold=0.3, sources=9)
    verdict = Verdict(dict.fromkeys(MEASURES, measure), {}, 9, 4, 0.05, 0.1)
    assert verdict.outcome == outcome
    return verdict


class ScriptedJudge:
    """Says ``outcomes`` in turn, one at every look that was ever taken; then PASS.

    looks: taken in the run, in which a rollback changes nothing. asked: (step, total) of the looks
    of this process.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes
        self.looks = 0
        self.asked: list[tuple[int, int]] = []

    def __call__(self, model: ThinkingModel, step: int, total: int) -> Verdict:
        assert not any(parameter.is_meta for parameter in model.parameters())
        self.asked.append((step, total))
        self.looks += 1
        outcome = self._outcomes[self.looks - 1] if self.looks <= len(self._outcomes) else PASS
        return make_verdict(outcome)

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self.looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looks = state["looks"]


def judged_config(**changes: Any) -> LearnerConfig:
    """Four steps of two episodes, judged after the first three and saved after each."""
    settings = {
        "checkpoint_every": 1,
        "episodes": EpisodeConfig(
            episodes=2 * STEPS,
            batch_size=2,
            thoughts=2,
            episodes_per_request=1,
            micro_batches=2,
            warmup_episodes=2,
        ),
        "probe": ProbeConfig(every_steps=100, items=4, batch_size=4, coherence_items=1),
        "rollback": RollbackConfig(every_steps=1),
    }
    return learner_config(**{**settings, **changes})


def state_files(checkpoint: Path) -> dict[str, bytes]:
    """What a checkpoint holds of engine and scorer, by name."""
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name not in ("state.json", "manifest.json", "signature")
    }
