"""A model as it answers benchmarks with thoughts: one before each answer, as step 2 taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from distforge.activity import counted
from distforge.data.answers import ANSWER
from distforge.data.dataset import IGNORE_INDEX
from distforge.evaluation.benchmarks.answering import first_part
from distforge.models.context import context_length
from distforge.rendering import Renderer
from distforge.thinking.items import ThoughtItem, grouped, pad_targets, pad_texts
from distforge.thinking.model import ThinkingModel
from distforge.thinking.places import Places
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.tags import CLOSE, Tags
from distforge.thinking.thoughts import ThoughtConfig

# What the model writes itself between thought and answer.
_LEAD = f"\n{ANSWER}"


class ThinkingAnswerer:
    """Thinks greedily after the question's line, then goes on by itself; see `Answerer`.

    Args:
        model, tokenizer: with the thinking tokens.
        thought: how it thinks.
        max_new_tokens: of a written answer, the thought not counted.
        batch_size: questions at once.

    Raises:
        InputError: the tokenizer lacks the thinking tokens.
    """

    def __init__(
        self,
        model: ThinkingModel,
        tokenizer: PreTrainedTokenizerBase,
        thought: ThoughtConfig,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._renderer = Renderer(tokenizer)
        self._tags = Tags.from_tokenizer(tokenizer, model=model.lm)
        self._thought = replace(thought, greedy=True)
        self._new, self._batch_size = max_new_tokens, batch_size

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        """See `Answerer.fits`."""
        context = context_length(self._model.lm)
        if context is None:
            return True
        question = len(self._prompts([asked])[0])
        scored = map(len, self._answers(answers))
        room = self._thought.max_tokens + 2 + max(scored, default=self._new)
        return question + room <= context

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        """See `Answerer.write`."""
        prompts = self._prompts(asked)
        # Questions of like length share a batch, so that padding is small.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        texts = [""] * len(prompts)
        for start in counted(range(0, len(order), self._batch_size), "thinking and answering"):
            chosen = order[start : start + self._batch_size]
            written = self._model.generate(
                [prompts[index] for index in chosen],
                self._tags,
                self._new,
                positions=PositionsConfig("answer"),
                thought=self._thought,
            )
            for index, row in zip(chosen, written, strict=True):
                texts[index] = first_part(self._tokenizer.decode(row.token_ids), stops)
        return texts

    def log_likelihoods(
        self, asked: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """See `Answerer.log_likelihoods`; all answers to a question follow the same thought."""
        found: list[list[float]] = []
        for start in counted(range(0, len(asked), self._batch_size), "thinking and scoring"):
            end = start + self._batch_size
            nats = iter(self._score(asked[start:end], answers[start:end]))
            found += [[next(nats) for _ in texts] for texts in answers[start:end]]
        return found

    def _score(self, asked: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        """Of all answers to all questions, in order."""
        questions = [
            ThoughtItem("", tuple(ids), (len(ids) - 1,), ()) for ids in self._prompts(asked)
        ]
        device = self._model.lm.device
        ids, mask = (part.to(device) for part in pad_texts(questions, self._tags.pad))
        rows, positions, _ = grouped(questions, 1)
        nothing = torch.full((len(rows), 1), IGNORE_INDEX)
        once = Places(self._model, ids, mask, rows, positions, nothing, self._tags)
        thoughts, _ = once.think(self._thought)
        each = rows.repeat_interleave(torch.tensor([len(texts) for texts in answers]))
        lead = len(self._answers([""])[0])
        targets = pad_targets(self._answers([text for group in answers for text in group]))
        places = Places(self._model, ids, mask, each, positions[each], targets, self._tags)
        scores = places.score(thoughts.at(each.to(device)))
        return [float(value) for value in scores.log_probs[:, lead:].sum(dim=1)]

    def _prompts(self, asked: Sequence[str]) -> list[list[int]]:
        """Up to where the thought opens."""
        return self._renderer.continued(asked, opened=False)

    def _answers(self, answers: Sequence[str]) -> list[list[int]]:
        """As they follow a thought."""
        return self._renderer.following([f"{_LEAD}{answer}" for answer in answers], CLOSE)
