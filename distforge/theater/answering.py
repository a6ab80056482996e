"""A model as it answers benchmarks with thoughts: one before each answer, as step 2 taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from distforge.data.answers import ANSWER
from distforge.data.dataset import IGNORE_INDEX, encode
from distforge.evaluation.benchmarks.answering import first_part
from distforge.models.context import context_length
from distforge.thinking.items import ThoughtItem, grouped, pad_targets, pad_texts
from distforge.thinking.model import ThinkingModel
from distforge.thinking.places import Places
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.tags import Tags
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
        self._tags = Tags.from_tokenizer(tokenizer)
        self._thought = replace(thought, greedy=True)
        self._new, self._batch_size = max_new_tokens, batch_size

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        """See `Answerer.fits`."""
        context = context_length(self._model.lm)
        if context is None:
            return True
        texts = [asked, *(f"{_LEAD}{answer}" for answer in answers)]
        question, *scored = map(len, encode(self._tokenizer, texts))
        room = self._thought.max_tokens + 2 + max(scored, default=self._new)
        return question + room <= context

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        """See `Answerer.write`."""
        prompts = encode(self._tokenizer, asked)
        # Questions of like length share a batch, so that padding is small.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), self._batch_size):
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
        for start in range(0, len(asked), self._batch_size):
            end = start + self._batch_size
            nats = iter(self._score(asked[start:end], answers[start:end]))
            found += [[next(nats) for _ in texts] for texts in answers[start:end]]
        return found

    def _score(self, asked: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        """Of all answers to all questions, in order."""
        questions = [
            ThoughtItem("", tuple(ids), (len(ids) - 1,), ())
            for ids in encode(self._tokenizer, asked)
        ]
        device = self._model.lm.device
        ids, mask = (part.to(device) for part in pad_texts(questions, self._tags.pad))
        rows, positions, _ = grouped(questions, 1)
        nothing = torch.full((len(rows), 1), IGNORE_INDEX)
        once = Places(self._model, ids, mask, rows, positions, nothing, self._tags)
        thoughts, _ = once.think(self._thought)
        each = rows.repeat_interleave(torch.tensor([len(texts) for texts in answers]))
        lead = len(encode(self._tokenizer, [_LEAD])[0])
        texts = [f"{_LEAD}{answer}" for group in answers for answer in group]
        targets = pad_targets(encode(self._tokenizer, texts))
        places = Places(self._model, ids, mask, each, positions[each], targets, self._tags)
        scores = places.score(thoughts.at(each.to(device)))
        return [float(value) for value in scores.log_probs[:, lead:].sum(dim=1)]
