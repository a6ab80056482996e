"""A model on held-out items: with its thoughts, without them, and with other things instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from distforge.data import Example
from distforge.evaluation.generation import SPARE_TOKENS
from distforge.evaluation.scoring import Answered, answer_questions
from distforge.theater.conditions import CONTROLS, Condition, ProbeResult, ThoughtProbe
from distforge.thinking.items import ThoughtItem
from distforge.thinking.language_model import language_model
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World


@dataclass(frozen=True)
class Examined:
    """What an examination found, over the held-out items in order.

    results: by condition, "own" and the controls. answered: of questions, free greedy generations
    judged by the checker; empty for free text. sources: of each place, the question or the document
    that it is in: places of one are not independent.
    """

    results: dict[Condition, ProbeResult]
    answered: list[Answered]
    sources: list[str]


class Examiner:
    """Examines models on the same items; every call is collective.

    Args:
        items: held out, with places to think at (see `placed`): the same for every model.
        questions: what the items ask, for free generations; none for free text.
        tokenizer: with the thinking tokens.
        thought: how the models think.
        batch_size: items at once.
        world: ranks share the questions.
    """

    def __init__(
        self,
        items: Sequence[ThoughtItem],
        questions: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        thought: ThoughtConfig,
        batch_size: int,
        world: World,
    ) -> None:
        self._items, self._questions, self._tokenizer = items, questions, tokenizer
        self._thought, self._batch_size, self._world = thought, batch_size, world
        longest = max(len(i.gold or ()) + len(i.targets[0]) for i in items if i.targets)
        self._room = longest + 2 + SPARE_TOKENS

    def __call__(self, model: nn.Module, controls: Sequence[Condition] = CONTROLS) -> Examined:
        """Examine a model whose weights are whole on this process, beside these controls."""
        lm = language_model(model)
        tags = Tags.from_tokenizer(self._tokenizer, model=lm)
        probe = ThoughtProbe(model, self._items, tags, self._thought, self._batch_size)
        conditions: tuple[Condition, ...] = ("own", *controls)
        answered: list[Answered] = []
        if self._questions:
            answered = answer_questions(
                lm,
                self._tokenizer,
                self._questions,
                self._world,
                max_new_tokens=self._room,
                batch_size=self._batch_size,
            )
        return Examined(
            results={condition: probe.ask(condition) for condition in conditions},
            answered=answered,
            sources=[item.source for item in self._items for _ in item.positions],
        )
