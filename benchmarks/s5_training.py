"""What one seed of `bench_s5.py` does: partial bake, reinforcement, and what it is held against."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from swap_tracking import (
    THOUGHT,
    SupervisedTraining,
    accuracy,
    bake_partly,
    make_items,
    make_model,
    make_tokenizer,
)

from distforge.optim import MuonGrokfastConfig, OptimizerConfig
from distforge.optim.build import AdamWConfig, OptimizerName
from distforge.quietstar import ThinkingModel, ThoughtTrainer
from distforge.quietstar.config import EpisodeConfig, LearnerConfig, ObjectiveConfig, ProbeConfig
from distforge.rollouts import RolloutConfig
from distforge.telemetry import RunLogger, TelemetryConfig, read_metrics
from distforge.telemetry.metrics import RL_ACCURACY
from distforge.thinking.tags import Tags
from distforge.training.distributed import init_world
from distforge.training.engine_config import EngineConfig

WANTED_BAKED = 0.6
CONTROLS = ("shuffled", "random", "filler", "none")
DIRECT_STEPS, FILLER_STEPS = 1200, 900
PROMPTS, THOUGHTS = 64, 8
ADAMW_LR = 2e-4


def learner_config(steps: int, optimizer: OptimizerName, rollouts: RolloutConfig) -> LearnerConfig:
    """At a rate that rises slowly: from a weak start, early noise does the damage."""
    return LearnerConfig(
        checkpoint_every=0,
        thought=THOUGHT,
        rollouts=rollouts,
        # Weights of the sum over a thought's eight tokens.
        objective=ObjectiveConfig(baseline="reinforce_pp", nll_weight=0.8, entropy_bonus=0.0),
        episodes=EpisodeConfig(
            episodes=steps * PROMPTS,
            batch_size=PROMPTS,
            thoughts=THOUGHTS,
            episodes_per_request=PROMPTS,
            warmup_episodes=max(1, steps // 15) * PROMPTS,
            final_fraction=0.2,
        ),
        optimizer=OptimizerConfig(
            name=optimizer,
            adamw=AdamWConfig(lr=ADAMW_LR, betas=(0.9, 0.99)),
            muon_grokfast=MuonGrokfastConfig.rl().replace(
                muon_lr=1e-3, adamw_lr=ADAMW_LR, grokfast_lambda=0.0, kl_coefficient=0.003
            ),
        ),
        engine=EngineConfig(dtype="float32", qk_clip_every=0),
        probe=ProbeConfig(every_steps=100, items=1000, batch_size=500, coherence_items=16),
    )


class Seed:
    """The partly baked model of a seed and all that is done with it; single-threaded."""

    def __init__(self, seed: int, work: Path) -> None:
        torch.set_num_threads(1)
        self._seed, self._work = seed, work
        self._tokenizer = make_tokenizer()
        self._tags = Tags.from_tokenizer(self._tokenizer)
        # Nothing is chosen on the items that are reported.
        self._probed, self._reported = make_items(1000, 900 + seed), make_items(2000, 800 + seed)
        model, self._baked_steps = bake_partly(seed, self._tags, WANTED_BAKED, self._probed)
        self._state = {name: value.clone() for name, value in model.state_dict().items()}

    def reinforced(
        self,
        steps: int,
        optimizer: OptimizerName = "muon_grokfast",
        rollouts: RolloutConfig = RolloutConfig(),  # noqa: B008 -- frozen
    ) -> dict[str, Any]:
        """What the baked model says before and after reinforcement, and what that took."""
        found: dict[str, Any] = {
            "baked_steps": self._baked_steps,
            "baked": self._ask(self._baked(), "own", "sampled", "gold", *CONTROLS),
        }
        directory = self._work / f"{optimizer}_{self._seed}_lag_{rollouts.staleness}"
        telemetry = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=60)
        items = make_items(steps * PROMPTS, 700 + self._seed)
        with RunLogger(directory, telemetry, {}, f"s5-{self._seed}") as log:
            trainer = ThoughtTrainer(
                ThinkingModel.wrap(self._baked(), mixing=False),
                self._tokenizer,
                items,
                self._probed,
                learner_config(steps, optimizer, rollouts),
                init_world(),
                log,
                directory,
            )
            torch.set_num_threads(1)
            began, used = time.perf_counter(), time.process_time()
            trainer.train()
        found["seconds"] = time.perf_counter() - began
        found["cpu_seconds"] = time.process_time() - used
        trained = ThinkingModel.from_pretrained(trainer.save_model(directory / "model"))
        found["trained"] = self._ask(trained, "own", "sampled", "gold", *CONTROLS)
        found["curve"] = [
            [record.step, record.seconds, record.metrics[RL_ACCURACY["own"]]]
            for record in read_metrics(directory / "metrics.jsonl")
            if record.step and RL_ACCURACY["own"] in record.metrics
        ]
        return found

    def fine_tuned(self, cpu_seconds: float) -> dict[str, Any]:
        """On answers without thoughts, at the rate of the reinforcement, for as much CPU time."""
        model = self._baked()
        training = SupervisedTraining(model, self._tags, "none", self._seed + 100, lr=ADAMW_LR)
        began = time.process_time()
        while time.process_time() - began < cpu_seconds:
            training.run(10)
        return {"steps": training.steps, **self._ask(model, "own", "none")}

    def references(self, most: int) -> dict[str, dict[str, float]]:
        """Models that were never shown a thought, trained from scratch."""
        found = {}
        for name, thought, condition, steps in (
            ("direct", "none", "none", DIRECT_STEPS),
            ("filler", "filler", "filler", FILLER_STEPS),
        ):
            model = make_model(self._seed)
            SupervisedTraining(model, self._tags, thought, self._seed + 50).run(min(steps, most))
            found[name] = self._ask(model, condition)
        return found

    def _baked(self) -> torch.nn.Module:
        model = make_model(self._seed)
        model.load_state_dict(self._state)
        return model.eval()

    def _ask(self, model: torch.nn.Module, *conditions: str) -> dict[str, float]:
        return {c: accuracy(model, self._reported, self._tags, c) for c in conditions}
