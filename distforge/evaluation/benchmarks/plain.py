"""Any causal LM of transformers as it answers without thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.data.answers import ANSWER
from distforge.data.dataset import encode
from distforge.evaluation.benchmarks.answering import first_part
from distforge.evaluation.generation import generate
from distforge.evaluation.likelihood import log_likelihoods
from distforge.models.context import context_length


class PlainAnswerer:
    """Writes and scores right after ``Answer:``; see `Answerer`.

    Args:
        model, tokenizer: any; nothing of theirs is changed.
        max_new_tokens: of a written answer.
        batch_size: texts at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._new, self._batch_size = max_new_tokens, batch_size

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        """See `Answerer.fits`."""
        context = context_length(self._model)
        if context is None:
            return True
        texts = [f"{asked}{ANSWER}{answer}" for answer in answers or ("",)]
        longest = max(map(len, encode(self._tokenizer, texts)))
        return longest + (0 if answers else self._new) <= context

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        """See `Answerer.write`."""
        prompts = [f"{text}{ANSWER}" for text in asked]
        written = generate(self._model, self._tokenizer, prompts, self._new, self._batch_size)
        return [first_part(generation.text, stops) for generation in written]

    def log_likelihoods(
        self, asked: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """See `Answerer.log_likelihoods`."""
        starts = encode(self._tokenizer, [f"{text}{ANSWER}" for text in asked])
        wholes = encode(
            self._tokenizer,
            [
                f"{text}{ANSWER}{answer}"
                for text, texts in zip(asked, answers, strict=True)
                for answer in texts
            ],
        )
        known = [len(start) for start, texts in zip(starts, answers, strict=True) for _ in texts]
        nats = iter(log_likelihoods(self._model, wholes, known, self._batch_size))
        return [[next(nats) for _ in texts] for texts in answers]
