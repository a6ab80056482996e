"""A model as it answers benchmarks with thoughts: one before each answer, as step 2 taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distforge.data.dataset import encode
from distforge.evaluation.benchmarks.answering import ANSWER, first_part
from distforge.quietstar.items import pad_targets
from distforge.quietstar.positions import PositionsConfig
from distforge.quietstar.tags import Tags
from distforge.quietstar.target_scores import Places
from distforge.quietstar.thinking_model import ThinkingModel
from distforge.quietstar.thoughts import ThoughtConfig
from distforge.training.loss import IGNORE_INDEX

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
        context = getattr(self._model.lm.config, "max_position_embeddings", None)
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
        rows = [torch.tensor(ids) for ids in encode(self._tokenizer, asked)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, True, self._tags.pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        questions = torch.arange(len(rows))
        each = questions.repeat_interleave(torch.tensor([len(texts) for texts in answers]))
        lead = len(encode(self._tokenizer, [_LEAD])[0])
        texts = [f"{_LEAD}{answer}" for group in answers for answer in group]
        targets = pad_targets(encode(self._tokenizer, texts))

        def places(of: Tensor, following: Tensor) -> Places:
            device = self._model.lm.device
            read = ids.to(device), mask.to(device)
            return Places(self._model, *read, of, lengths[of] - 1, following, self._tags)

        nothing = torch.full((len(rows), 1), IGNORE_INDEX)
        thoughts, _ = places(questions, nothing).think(self._thought)
        scores = places(each, targets).score(thoughts.at(each.to(thoughts.rows.device)))
        return [float(value) for value in scores.log_probs[:, lead:].sum(dim=1)]
