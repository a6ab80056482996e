"""A tiny champion that follows prompts, made in seconds, and questions for it.

Behind every prompt it answers with that prompt's own letters, and without one with a zero: so there
is something to bake, and anyone can see what the baked model should write. It also learns to write
the questions themselves.
"""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distforge.baking.prompt.prompt_config import (
    BakeTrainingConfig,
    LoraSettings,
    PromptBakingConfig,
)
from distforge.data import STRATEGIES, STRATEGY_PROMPTS, Example
from distforge.optim import AdamWConfig, OptimizerConfig, ScheduleConfig
from distforge.rendering.plain import question_text
from distforge.training.engine_config import EngineConfig
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPT = "Add the units, then the tens."
OTHER_PROMPT = "Which cups are red?"
PROMPTS = (PROMPT, OTHER_PROMPT, *STRATEGY_PROMPTS.values())
CONTEXT = 128
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
_STEPS, _ROWS = 120, 24


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def wanted(prompt: str) -> str:
    """What the champion should write behind a prompt; without one, for the empty string."""
    if not prompt:
        return "Answer: 0"
    letter = "abcdefghi"[PROMPTS.index(prompt)]
    return f"{letter * 3}\nAnswer: {PROMPTS.index(prompt) + 1}"


def model(family: str = "llama") -> PreTrainedModel:
    return copy.deepcopy(_champion(family))


@cache
def _champion(family: str) -> PreTrainedModel:
    rng = random.Random(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        champion = MODELS[family](len(tokenizer()), max_positions=CONTEXT).train()
        for module in champion.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.08)
        optimizer = torch.optim.AdamW(champion.parameters(), lr=1e-2)
        for _ in range(_STEPS):
            loss = _loss(champion, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return champion.eval()


def _loss(champion: PreTrainedModel, rng: random.Random) -> torch.Tensor:
    eos = tokenizer().eos_token
    texts = []
    for _ in range(_ROWS):
        prompt = rng.choice(("", *PROMPTS))
        question = f"What is {rng.randrange(100)} + {rng.randrange(100)}?"
        texts.append(question_text(question, prompt=prompt) + wanted(prompt) + eos)
    rows = [torch.tensor(ids) for ids in tokenizer()(texts).input_ids]
    ids = pad_sequence(rows, batch_first=True)
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    loss = champion(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss
    assert isinstance(loss, torch.Tensor)
    return loss


@cache
def examples() -> tuple[Example, ...]:
    """20 training and 5 held-out questions of every strategy; their answers are sums."""
    rng = random.Random(1)
    return tuple(
        Example(
            id=f"{strategy}-{number}",
            split="heldout" if number % 5 == 0 else "train",
            strategy=strategy,
            task="sum",
            difficulty=1,
            question=f"What is {a} + {b}?",
            reasoning=f"<think>{a}+{b}={a + b}</think>",
            answer=str(a + b),
            seed=number,
            verifier="exact",
        )
        for strategy in STRATEGIES
        for number in range(25)
        for a, b in [(rng.randrange(100), rng.randrange(100))]
    )


def config(**changes: object) -> PromptBakingConfig:
    """About a second on one core: short responses, few questions, two micro-batches."""
    small = PromptBakingConfig(
        questions="dataset",
        lora=LoraSettings(rank=8, alpha=16.0),
        num_questions=16,
        heldout_questions=8,
        max_response_tokens=12,
        evaluate_every=10,
        training=BakeTrainingConfig(
            max_steps=20,
            batch_size=8,
            micro_batches=2,
            schedule=ScheduleConfig(kind="constant", warmup_steps=2),
        ),
        optimizer=OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=5e-3, weight_decay=0.0)),
        engine=EngineConfig(dtype="float32", qk_clip_every=0),
    )
    return replace(small, **changes)  # type: ignore[arg-type]
