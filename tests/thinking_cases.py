"""A model, items and a configuration of reinforcement learning that take a second."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from distforge.data import THINKING_TOKENS
from distforge.models.vocabulary import add_thinking_tokens
from distforge.optim import MuonGrokfastConfig, OptimizerConfig
from distforge.optim.build import AdamWConfig
from distforge.quietstar.config import (
    EpisodeConfig,
    LearnerConfig,
    ObjectiveConfig,
    ProbeConfig,
    RewardConfig,
)
from distforge.quietstar.rollback import Judge
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.rollouts import RolloutConfig
from distforge.telemetry import RunLogger, TelemetryConfig
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from tests.tiny_models import tiny_llama, tiny_tokenizer

SILENT = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=1e9)


def thinking_pair(
    *, mixing: bool = False, seed: int = 0
) -> tuple[ThinkingModel, PreTrainedTokenizerFast]:
    """A tiny Llama that can think, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=seed)
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the mixing head
        return ThinkingModel.wrap(model, mixing=mixing), tokenizer


def opinionated_pair() -> tuple[ThinkingModel, PreTrainedTokenizerFast]:
    """The same, surer of some thoughts than of others: to `thinking_pair` most words are alike."""
    model, tokenizer = thinking_pair()
    with torch.no_grad():
        model.lm.get_output_embeddings().weight.mul_(5)
    return model, tokenizer


def question_like_items(count: int, seed: int = 0) -> list[ThoughtItem]:
    """Texts of 4 to 9 tokens, one place to think at their end, targets of 1 or 2 tokens."""
    draw = random.Random(seed)
    items = []
    for number in range(count):
        text = tuple(draw.randrange(2, 300) for _ in range(draw.randrange(4, 10)))
        target = tuple(draw.randrange(2, 300) for _ in range(draw.randrange(1, 3)))
        gold = tuple(draw.randrange(2, 300) for _ in range(3))
        items.append(ThoughtItem(f"{seed}:{number}", text, (len(text) - 1,), (target,), gold))
    return items


def text_like_items(count: int, seed: int = 0) -> list[ThoughtItem]:
    """Texts of 12 tokens without places."""
    draw = random.Random(seed)
    return [
        ThoughtItem(f"{seed}:{n}", tuple(draw.randrange(2, 300) for _ in range(12)), (), ())
        for n in range(count)
    ]


def learner_config(**changes: Any) -> LearnerConfig:
    """Six steps of four episodes with three thoughts of up to four tokens."""
    base = LearnerConfig(
        checkpoint_every=2,
        thought=ThoughtConfig(max_tokens=4, closing="learned"),
        objective=ObjectiveConfig(),
        episodes=EpisodeConfig(
            episodes=24,
            batch_size=4,
            thoughts=3,
            episodes_per_request=2,
            micro_batches=2,
            warmup_episodes=4,
        ),
        optimizer=OptimizerConfig(
            name="adamw", adamw=AdamWConfig(lr=1e-2), muon_grokfast=MuonGrokfastConfig.rl()
        ),
        engine=EngineConfig(dtype="float32", qk_clip_every=0),
        probe=ProbeConfig(every_steps=3, items=6, batch_size=4, coherence_items=2),
        rollouts=RolloutConfig(timeout_seconds=240, request_seconds=120),
    )
    return replace(base, **changes)


def text_config(**changes: Any) -> LearnerConfig:
    """The same for free text: a thought after every fourth token, for the two that follow."""
    return learner_config(
        thought=ThoughtConfig(max_tokens=3),
        positions=PositionsConfig(kind="interval", interval=4, horizon=2),
        reward=RewardConfig(kind="prediction_gain"),
        **changes,
    )


def make_trainer(
    directory: Path,
    config: LearnerConfig,
    world: World,
    *,
    text: bool = False,
    logger: RunLogger | None = None,
    judge: Judge | None = None,
) -> ThoughtTrainer:
    """A trainer over 8 items and 6 held-out ones."""
    make = text_like_items if text else question_like_items
    model, tokenizer = thinking_pair(mixing=text)
    logger = logger or RunLogger(directory, SILENT, {}, "tiny", enabled=False)
    return ThoughtTrainer(
        model, tokenizer, make(8), make(6, seed=1), config, world, logger, directory, judge=judge
    )
