"""Any causal LM of transformers as it answers without thoughts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.data.text import ANSWER
from distforge.evaluation.benchmarks.answering import first_part
from distforge.evaluation.generation import generate
from distforge.models.context import context_length
from distforge.rendering import Renderer
from distforge.training.loss import keeps_logits


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
        written = generate(self._model, self._tokenizer, prompts, self._new, self._batch_size)
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
        nats = iter(self._score(rows, known))
        return [[next(nats) for _ in texts] for texts in answers]

    def _with_answers(self, asked: str, answers: Sequence[str]) -> tuple[list[list[int]], int]:
        """Ids of the question with each answer, and how many are the question's.

        As a turn of its own an answer does not begin with a space; lm-evaluation-harness agrees.
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

    @torch.no_grad()
    def _score(self, rows: Sequence[list[int]], known: Sequence[int]) -> Iterator[float]:
        """Log-probability of each row's ids from its ``known``-th on."""
        was_training = self._model.training
        self._model.eval()
        try:
            for start in range(0, len(rows), self._batch_size):
                end = start + self._batch_size
                yield from self._score_batch(rows[start:end], known[start:end])
        finally:
            self._model.train(was_training)

    def _score_batch(self, rows: Sequence[list[int]], known: Sequence[int]) -> list[float]:
        width, device = max(map(len, rows)), self._model.device
        # Padding stands behind: what it is, and that it is attended to by itself, changes nothing.
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        columns = torch.arange(1, width, device=device)
        lengths, first = (
            torch.tensor(values, device=device)[:, None]
            for values in ([len(row) for row in rows], known)
        )
        wanted = (columns >= first) & (columns < lengths)
        kept = width - int(first.min()) + 1 if keeps_logits(self._model) else width
        options = {"logits_to_keep": kept} if keeps_logits(self._model) else {}
        logits = self._model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options
        ).logits[:, :-1]
        cut = width - kept
        log_probs = logits.float().log_softmax(dim=-1)
        own = log_probs.gather(2, ids[:, cut + 1 :, None])[..., 0]
        return [float(value) for value in (own * wanted[:, cut:]).sum(dim=1)]
