"""Any causal LM of transformers as it answers without thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.data.answers import ANSWER
from distforge.evaluation.benchmarks.answering import first_part
from distforge.evaluation.generation import generate
from distforge.evaluation.likelihood import log_likelihoods
from distforge.models.context import context_length
from distforge.rendering import Renderer


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
        self._renderer = Renderer(tokenizer)
        self._new, self._batch_size = max_new_tokens, batch_size

    def fits(self, asked: str, answers: Sequence[str] = ()) -> bool:
        """See `Answerer.fits`."""
        context = context_length(self._model)
        if context is None:
            return True
        rows, _ = self._with_answers(asked, answers or ("",))
        return max(map(len, rows)) + (0 if answers else self._new) <= context

    def write(self, asked: Sequence[str], stops: Sequence[str]) -> list[str]:
        """See `Answerer.write`."""
        prompts = self._renderer.continued([f"{text}{ANSWER}" for text in asked])
        written = generate(
            self._model,
            self._tokenizer,
            prompts,
            self._new,
            self._batch_size,
            unwanted=stops,
        )
        return [first_part(generation.text, stops) for generation in written]

    def log_likelihoods(
        self, asked: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """See `Answerer.log_likelihoods`."""
        rows: list[list[int]] = []
        known: list[int] = []
        for text, texts in zip(asked, answers, strict=True):
            wholes, length = self._with_answers(text, texts)
            rows += wholes
            known += [length] * len(wholes)
        nats = iter(log_likelihoods(self._model, rows, known, self._batch_size))
        return [[next(nats) for _ in texts] for texts in answers]

    def _with_answers(self, asked: str, answers: Sequence[str]) -> tuple[list[list[int]], int]:
        """Ids of the question with each answer, and how many are the question's.

        As a turn of its own an answer does not begin with a space.
        """
        question = f"{asked}{ANSWER}"
        if self._renderer.has_template:
            start = self._renderer.continued([question])[0]
            bare = [answer.removeprefix(" ") for answer in answers]
            return [[*start, *ids] for ids in self._renderer.following(bare)], len(start)
        start, *wholes = self._renderer.continued(
            [question, *(f"{question}{answer}" for answer in answers)]
        )
        return wholes, len(start)
