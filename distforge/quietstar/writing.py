"""Answers that the model writes whole, thought and all: how they are sampled, and what they earn.

To sampling, packing and loss such an answer is a thought without a target: it begins behind the
prompt's last token and ends with the end of the turn, or with ``max_tokens``. All of its tokens are
the policy's. What is sampled is what is examined: the exam writes greedily by the same rules.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.activity import counted
from distforge.errors import InputError
from distforge.quietstar.asked import AskedItem, in_lists
from distforge.rendering import Renderer
from distforge.rewards import RewardFunctions, Written
from distforge.thinking.items import grouped, pad_texts
from distforge.thinking.language_model import language_model, turn_for_writing_
from distforge.thinking.model import ThinkingModel
from distforge.thinking.sampling import ThoughtConfig
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts, sample_thoughts
from distforge.training.distributed import World


@dataclass(frozen=True)
class AnswerTags(Tags):
    """``open`` is what prompts end with, ``close`` ends a turn. Both may also be padding."""

    def __post_init__(self) -> None:
        """Nothing to refuse: what is written may hold ``open`` as any other token."""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, opening: int
    ) -> AnswerTags:
        """Of answers behind the token ``opening``."""
        renderer = Renderer(tokenizer, model)
        others = tuple(stop for stop in renderer.stops if stop != renderer.end)
        return cls(opening, renderer.end, renderer.pad, None, others, renderer.absent)

    def banned(self, *, close: bool) -> tuple[int, ...]:
        """Other ends than ``close``, padding, and what the tokenizer lacks."""
        never = {self.pad, *self.stops, *self.absent} - {self.close}
        return tuple(sorted(never | ({self.close} if close else set())))


@dataclass(frozen=True)
class Answers:
    """N answers. rewards: (N,) float32, 0 where no function says anything. components: (N,) by
    function. texts: without the end. finished: (N,), whether the model ended them."""

    rewards: Tensor
    components: dict[str, Tensor]
    texts: list[str]
    finished: Tensor


class Answer(NamedTuple):
    """Reward (0 where no function says anything) and text, and whether the model ended it."""

    reward: float
    text: str
    finished: bool


class Writing:
    """How answers are written and judged.

    Args:
        thought: with ``closing`` "learned".
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tags: AnswerTags,
        thought: ThoughtConfig,
        functions: RewardFunctions,
    ) -> None:
        self.tags, self.thought = tags, thought
        self._tokenizer, self._functions = tokenizer, functions

    def judge(self, items: Sequence[AskedItem], thoughts: Thoughts, step: int) -> Answers:
        """What N answers are worth; ``thoughts.rows`` index the items.

        Raises:
            InputError: a reward function broke its promise.
        """
        lengths = thoughts.content_lengths.tolist()
        ids = [row[:n] for row, n in zip(thoughts.tokens.tolist(), lengths, strict=True)]
        # The end of the turn is not among them; thinking tokens are for the reward to see.
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=False)
        asked = [items[row] for row in thoughts.rows.tolist()]
        talks = [not isinstance(item.prompt, str) for item in asked]
        written = Written(
            rows=[item.id for item in asked],
            prompts=[item.prompt for item in asked],
            completions=[
                [{"role": "assistant", "content": text}] if talk else text
                for text, talk in zip(texts, talks, strict=True)
            ],
            completion_ids=ids,
            columns=in_lists(asked),
        )
        judged = self._functions(written, step)
        return Answers(
            torch.tensor(judged.rewards, dtype=torch.float32),
            {name: torch.tensor(values) for name, values in judged.components.items()},
            texts,
            thoughts.closed,
        )

    def answer(
        self,
        model: ThinkingModel,
        items: Sequence[AskedItem],
        batch_size: int,
        world: World,
        step: int,
    ) -> list[Answer]:
        """The greedy answer to each item; collective, ranks share the items.

        Raises:
            InputError: on every rank, where a reward function broke its promise on one.
        """
        mine, fault = items[world.rank :: world.size], ""
        writer = model
        if world.device.type == "cpu":
            # A copy, in which weights may lie as writing wants them; a GPU wants nothing.
            writer = copy.deepcopy(model)
            turn_for_writing_(writer.lm)
        try:
            own = [list(answer) for answer in self._answer(writer, mine, batch_size, step)]
        except InputError as error:
            own, fault = [], str(error)
        gathered = world.gather_objects([fault, own])
        if faults := [fault for fault, _ in gathered if fault]:
            raise InputError(faults[0])
        by_rank = [answers for _, answers in gathered]
        return [Answer(*by_rank[n % world.size][n // world.size]) for n in range(len(items))]

    def _answer(
        self, model: nn.Module, mine: Sequence[AskedItem], batch_size: int, step: int
    ) -> list[Answer]:
        """In order, but questions of like length share a batch."""
        order = sorted(range(len(mine)), key=lambda n: len(mine[n].text))
        found: dict[int, Answer] = {}
        for start in counted(range(0, len(order), batch_size), "answering held-out questions"):
            chosen = order[start : start + batch_size]
            answers = self._greedy(model, [mine[n] for n in chosen], step)
            found |= dict(zip(chosen, answers, strict=True))
        return [found[n] for n in range(len(mine))]

    def _greedy(self, model: nn.Module, items: Sequence[AskedItem], step: int) -> list[Answer]:
        greedy = replace(self.thought, greedy=True)
        device = language_model(model).device
        ids, mask = (part.to(device) for part in pad_texts(items, self.tags.pad))
        rows, positions, _ = grouped(items, 1)
        thoughts = sample_thoughts(model, ids, mask, rows, positions, self.tags, greedy)
        answers = self.judge(items, thoughts, step)
        rewards = answers.rewards.nan_to_num(0.0).tolist()
        each = zip(rewards, answers.texts, answers.finished.tolist(), strict=True)
        return [Answer(*answer) for answer in each]


def without_silence(rewards: Tensor, thoughts: int) -> Tensor:
    """(N,) rewards whose NaN, where no function said anything, is the mean of the group's others:
    such an answer is neither better nor worse."""
    groups = rewards.view(-1, thoughts)
    mean = groups.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    return torch.where(groups.isnan(), mean, groups).reshape(-1)
