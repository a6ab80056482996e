"""Questions to bake on: a dataset's, or where there are no data, everyday ones or the model's own.

A model that was trained on questions writes one when it is given no more than what stands in front
of every question (Xu et al. 2024, arXiv 2406.08464).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.prompt.trajectories import PromptedQuestion
from distforge.data import STRATEGY_PROMPTS, Example, at, make_examples, of_split
from distforge.errors import InputError
from distforge.evaluation.generation import Progress, generate
from distforge.rendering import Renderer
from distforge.telemetry.console import counting
from distforge.training.distributed import World

# Where no data are given: enough of every strategy's questions, made in seconds.
_DEFAULT_EXAMPLES = 14_000
# What people ask of an assistant, a question a line, each once.
_EVERYDAY = Path(__file__).with_name("everyday_questions.txt")
# Rounds of writing before a model that repeats itself is given up on.
_ROUNDS = 8
# A later round tries at most so many times what is missing: one over this.
_LEAST_KEPT = 0.25


@dataclass(frozen=True)
class QuestionSets:
    """Questions to train on, and others to measure KL on."""

    train: list[PromptedQuestion]
    heldout: list[PromptedQuestion]


class QuestionSource:
    """Where a baker's questions come from.

    Args:
        tokenizer: of the models that may write their own.
        config: how many, from where, and the seed.
        examples: questions of both splits, or None for the built-in tasks' own.
        world: this process.
        say: is told how far the model is with questions of its own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptBakingConfig,
        examples: Sequence[Example] | None,
        world: World,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._say = say
        self._given = examples
        self._world = world
        # The last model that wrote questions, and what it wrote.
        self._written: tuple[PreTrainedModel | None, list[str]] = (None, [])

    @property
    def has_examples(self) -> bool:
        """Whether they come from data, with right answers and strategies."""
        return self._config.questions == "dataset"

    @cached_property
    def _examples(self) -> Sequence[Example]:
        if self._given is not None:
            return self._given
        return make_examples(_DEFAULT_EXAMPLES, self._config.seed)

    def sets(self, model: PreTrainedModel, prompts: Mapping[str, str]) -> QuestionSets:
        """The questions of prompts (to their strategies), ``num_questions`` each; collective."""
        config = self._config
        counts = (config.num_questions, config.heldout_questions)
        sets = QuestionSets([], [])
        for prompt, strategy in prompts.items():
            if not self.has_examples:
                count = sum(counts)
                own = self._config.questions == "self"
                asked = self._write(model, count) if own else everyday(count, self._config.seed)
                shares = [asked[: counts[0]], asked[counts[0] :]]
            else:
                shares = [
                    [e.question for e in self._take(split, strategy, count)]
                    for split, count in zip(("train", "heldout"), counts, strict=True)
                ]
            for chosen, share in zip((sets.train, sets.heldout), shares, strict=True):
                chosen += [PromptedQuestion(prompt, question) for question in share]
        return sets

    def heldout(self, strategy: str, count: int) -> list[Example]:
        """Held-out examples of a strategy (empty: of all), to be asked and judged; 0 is all."""
        return self._take("heldout", strategy, count or len(self._examples))

    def has_heldout(self, strategy: str) -> bool:
        """Whether any held-out example is of a strategy."""
        return any(example.strategy == strategy for example in of_split(self._examples, "heldout"))

    def spare(self, strategy: str, count: int) -> list[Example]:
        """``count`` examples of the training split, those that baking takes last or not at all."""
        everything = self._take("train", strategy, len(self._examples))
        return everything[-count:]

    def rehearsal(self, strategies: Sequence[str], size: int) -> list[PromptedQuestion]:
        """Training questions of earlier prompts for a set of ``size``, without a prompt.

        Their teacher is the model as it is, so it stays put on them.
        """
        replay = self._config.replay
        if not strategies or not replay or not self.has_examples:
            return []
        count = round(replay / (1 - replay) * size / len(strategies))
        return [
            PromptedQuestion("", example.question)
            for strategy in strategies
            for example in self._take("train", strategy, count)
        ]

    def _take(self, split: str, strategy: str, count: int) -> list[Example]:
        return dataset_questions(self._examples, split, strategy, count, self._config.seed)

    def _write(self, model: PreTrainedModel, count: int) -> list[str]:
        author, questions = self._written
        if author is not model or len(questions) != count:
            self._say(f"the model writes {count:,} questions of its own")
            questions = written_questions(
                model,
                self._tokenizer,
                count,
                self._world,
                seed=self._config.seed,
                max_new_tokens=self._config.max_response_tokens,
                batch_size=self._config.generation_batch_size,
                progress=counting(self._say, "questions tried"),
            )
            self._written = (model, questions)
        return questions


def strategy_of(prompt: str) -> str:
    """The strategy whose prompt this is, or an empty string."""
    for strategy, text in STRATEGY_PROMPTS.items():
        if prompt.strip() == text:
            return strategy
    return ""


def everyday(count: int, seed: int) -> list[str]:
    """``count`` everyday questions in a seeded order; `InputError` where there are fewer."""
    questions = _EVERYDAY.read_text(encoding="utf-8").splitlines()
    if count > len(questions):
        raise InputError(
            f"{count:,} everyday questions are needed and there are {len(questions)}; lower "
            "num_questions or heldout_questions, set data, or let the model write its own with "
            "questions = 'self'"
        )
    random.Random(f"{seed}:everyday").shuffle(questions)
    return questions[:count]


def dataset_questions(
    examples: Sequence[Example], split: str, strategy: str, count: int, seed: int
) -> list[Example]:
    """``count`` examples of a split in a seeded order (all, where there are fewer).

    Args:
        strategy: only this one's; empty for all.

    Raises:
        InputError: there is none.
    """
    of_it = of_split(examples, split)
    found = [n for n, e in enumerate(of_it) if strategy in ("", e.strategy)]
    if not found:
        raise InputError(
            f"the data hold no {split} question{f' of strategy {strategy}' if strategy else ''}; "
            "give data that do, or let the model write its own with questions = 'self'"
        )
    random.Random(f"{seed}:{split}:{strategy}").shuffle(found)
    return list(at(of_it, found[:count]))


def written_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    world: World,
    *,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """``count`` distinct questions that the model samples at temperature 1; collective.

    The text in front of a question is all it reads, so no data are needed. A question ends where
    the layout would go on, and one that does not end within ``max_new_tokens`` is dropped.

    Raises:
        InputError: the model does not write that many distinct ones.
    """
    before, after = Renderer(tokenizer).around_question
    found: dict[str, None] = {}
    tried = 0
    for attempt in range(_ROUNDS):
        # As many as are missing, by how many of those tried so far were of use.
        kept = max(len(found), 1) / tried if tried else 1.0
        wanted = math.ceil((count - len(found)) / max(kept, _LEAST_KEPT) / world.size)
        written = generate(
            model,
            tokenizer,
            [before] * wanted,
            max_new_tokens,
            batch_size,
            progress,
            temperature=1.0,
            seed=(seed * _ROUNDS + attempt) * world.size + world.rank,
        )
        tried += wanted * world.size
        mine = [_question(told.text, after, told.finished) for told in written]
        for share in world.gather_objects([question for question in mine if question]):
            found.update(dict.fromkeys(share))
        if len(found) >= count:
            return list(found)[:count]
    raise InputError(
        f"the model wrote {len(found)} distinct questions in {tried} attempts, {count} are needed; "
        "set data, or lower num_questions"
    )


def _question(text: str, after: str, finished: bool) -> str:
    """The question in a text that may go on behind it; empty where there is none."""
    ending = after.strip("\n") or "\n"
    question, ended, _ = text.partition(ending)
    return question.strip() if ended or finished else ""
