"""Scoring free generations: the honest numbers behind "converged".

Accuracy is that of the generated answer, greedy, from the question, judged by the task's checker;
token usage is counted in the same generations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.data import (
    STRATEGIES,
    STRATEGY_PROMPTS,
    USAGE_TARGETS,
    Example,
    is_correct,
)
from distforge.data.text import extract_answer
from distforge.evaluation.generation import generate
from distforge.rendering import Asked, Renderer
from distforge.training.distributed import World


@dataclass(frozen=True)
class Answered:
    """One question and what the model made of it."""

    example: Example
    text: str
    answer: str | None
    correct: bool

    def as_dict(self) -> dict[str, Any]:
        """The row of ``samples.jsonl``."""
        return {
            "strategy": self.example.strategy,
            "question": self.example.question,
            "generated": self.text,
            "answer": self.example.answer,
            "correct": self.correct,
        }


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1] over ``count`` questions; NaN where a strategy had no question.

    ``accuracy_overall`` weighs questions equally. ``accuracy`` is by strategy, ``token_usage`` by
    usage type (mece, falsify and doubt given their strategy).
    """

    accuracy_overall: float
    accuracy: dict[str, float]
    token_usage: dict[str, float]
    count: int


def judge(example: Example, text: str) -> Answered:
    """Judge one generation; no ``Answer:`` line means wrong."""
    answer = extract_answer(text)
    return Answered(example, text, answer, answer is not None and is_correct(example, answer))


def summarize(answered: Sequence[Answered]) -> Scores:
    """Scores of judged generations."""
    by_strategy = {
        strategy: [a for a in answered if a.example.strategy == strategy] for strategy in STRATEGIES
    }
    usage = {}
    for target in USAGE_TARGETS:
        counted = by_strategy[target.strategy] if target.strategy else answered
        usage[target.kind] = _fraction([target.token in a.text for a in counted])
    return Scores(
        accuracy_overall=_fraction([a.correct for a in answered]),
        accuracy={s: _fraction([a.correct for a in rows]) for s, rows in by_strategy.items()},
        token_usage=usage,
        count=len(answered),
    )


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    world: World,
    *,
    max_new_tokens: int,
    batch_size: int,
    prompted: bool = False,
    prompt: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Answered]:
    """Ask every question and judge the answers; ranks share the work and all get all answers.

    ``prompted`` gives each example's strategy prompt with its question, ``prompt`` one and the
    same with all. Collective: every rank must call it with the same examples.
    """
    mine = list(examples[world.rank :: world.size])
    renderer = Renderer(tokenizer)
    asked = renderer.prompts(
        [Asked(e.question, STRATEGY_PROMPTS[e.strategy] if prompted else prompt) for e in mine]
    )
    with torch.no_grad():
        generations = generate(
            model, tokenizer, asked, max_new_tokens, batch_size, progress=progress
        )
    shares = world.gather_objects([renderer.turn(generation.text) for generation in generations])
    texts = [""] * len(examples)
    for rank, share in enumerate(shares):
        texts[rank :: world.size] = share
    return [judge(example, text) for example, text in zip(examples, texts, strict=True)]


def stratified(examples: Sequence[Example], count: int) -> list[Example]:
    """The first examples of each strategy, ``count`` in all, in the given order of strategies."""
    share = math.ceil(count / len(STRATEGIES))
    chosen: list[Example] = []
    for strategy in STRATEGIES:
        chosen += [e for e in examples if e.strategy == strategy][:share]
    return chosen[:count] if count < len(chosen) else chosen


def _fraction(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan
