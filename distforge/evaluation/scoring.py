"""Scoring free generations: the honest numbers behind "converged".

Accuracy is that of the generated answer, greedy, from the question, judged by the task's checker;
token usage is counted in the same generations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.data import (
    STRATEGIES,
    STRATEGY_PROMPTS,
    USAGE_TARGETS,
    Example,
    judge_answer,
)
from distforge.data.answers import extract_answer
from distforge.evaluation.generation import Progress, generate
from distforge.rendering import Asked, Renderer
from distforge.training.distributed import World

_MARKS = "'Answer:', '####' or \\boxed{}"


@dataclass(frozen=True)
class Answered:
    """One question and what the model made of it.

    ``prompt`` is the text that it read, ``answer`` what its ``text`` gives as the answer, and
    ``why`` says what made it right or wrong.
    """

    example: Example
    text: str
    answer: str | None
    correct: bool
    why: str = ""
    prompt: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row of ``samples.jsonl``."""
        return {
            "strategy": self.example.strategy,
            "question": self.example.question,
            "prompt": self.prompt,
            "generated": self.text,
            "answer": self.answer,
            "expected": self.example.answer,
            "verdict": "right" if self.correct else "wrong",
            "why": self.why,
        }


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1] over ``count`` questions; NaN without any.

    ``accuracy_overall`` weighs questions equally. ``accuracy`` is by strategy, of those that the
    questions name; ``token_usage`` by usage type (mece, falsify and doubt given their strategy), of
    questions that name strategies: empty of others, which have no such tokens to use.
    """

    accuracy_overall: float
    accuracy: dict[str, float]
    token_usage: dict[str, float]
    count: int


def unmarked_note(answered: Sequence[Answered]) -> str:
    """A sentence on the generations that are wrong because nothing in them marks an answer; empty
    where all have a mark."""
    count = sum(one.answer is None for one in answered)
    if not count:
        return ""
    return (
        f"{count:,} of {len(answered):,} generations are wrong because no {_MARKS} marks their "
        "answer: request one in the question, or train the model to write one"
    )


def judge(example: Example, text: str, prompt: str = "") -> Answered:
    """Judge one generation; where nothing marks an answer, it is wrong."""
    answer = extract_answer(text)
    if answer is None:
        why = f"it gives no answer: no {_MARKS} is in it"
        return Answered(example, text, None, False, why, prompt)
    verdict = judge_answer(example, answer)
    return Answered(example, text, answer, verdict.same, verdict.why, prompt)


def summarize(answered: Sequence[Answered]) -> Scores:
    """Scores of judged generations."""
    found: dict[str, list[Answered]] = {strategy: [] for strategy in STRATEGIES}
    for one in answered:
        if one.example.strategy:
            found[one.example.strategy].append(one)
    by_strategy = {strategy: rows for strategy, rows in found.items() if rows}
    usage = {}
    for target in USAGE_TARGETS if by_strategy else ():
        counted = by_strategy.get(target.strategy, ()) if target.strategy else answered
        if counted:
            usage[target.kind] = fraction([target.token in a.text for a in counted])
    return Scores(
        accuracy_overall=fraction([a.correct for a in answered]),
        accuracy={s: fraction([a.correct for a in rows]) for s, rows in by_strategy.items()},
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
    progress: Progress | None = None,
) -> list[Answered]:
    """Ask every question and judge the answers; ranks share the work and all get all answers.

    ``prompted`` gives each example's strategy prompt with its question (none where it has no
    strategy), ``prompt`` one and the same with all. Collective: every rank must call it with the
    same examples.
    """
    asked = [
        Asked(e.question, STRATEGY_PROMPTS.get(e.strategy, "") if prompted else prompt, e.turns)
        for e in examples
    ]
    prompts = Renderer(tokenizer).prompts(asked)
    texts = _write(model, tokenizer, prompts, world, max_new_tokens, batch_size, progress)
    read = [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
    return [judge(*one) for one in zip(examples, texts, read, strict=True)]


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    world: World,
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """The turn that the model writes, greedily, to each question; collective, ranks share the
    work."""
    prompts = Renderer(tokenizer).prompts(asked)
    return _write(model, tokenizer, prompts, world, max_new_tokens, batch_size, progress)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    world: World,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None,
) -> list[str]:
    renderer, mine = Renderer(tokenizer), prompts[world.rank :: world.size]
    with torch.no_grad():
        generations = generate(
            model, tokenizer, mine, max_new_tokens, batch_size, progress=progress
        )
    shares = world.gather_objects([renderer.turn(generation.text) for generation in generations])
    texts = [""] * len(prompts)
    for rank, share in enumerate(shares):
        texts[rank :: world.size] = share
    return texts


def stratified(examples: Sequence[Example], count: int) -> list[Example]:
    """The first examples of each strategy, ``count`` in all, in the given order of strategies;
    those without one are as a strategy of their own, the last."""
    kinds = {strategy: list[Example]() for strategy in (*STRATEGIES, "")}
    for example in examples:
        if len(kinds[example.strategy]) < count:
            kinds[example.strategy].append(example)
    there = [found for found in kinds.values() if found]
    share = math.ceil(count / max(1, len(there)))
    return [example for found in there for example in found[:share]][:count]


def fraction(flags: Sequence[bool]) -> float:
    """How many of them are true; NaN without any."""
    return sum(flags) / len(flags) if flags else math.nan
