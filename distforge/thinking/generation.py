"""Visible text, written while thinking: batched, with one cache, a forward pass a token.

Next to the text stream a row may have a thought stream: the text up to some place, a thought, and
what was written since. Both read a visible token in the same forward pass; the mixing head weighs
their predictions. A thought of T tokens and the token after it take T + 1 forward passes: the
opening tag goes in with the token before it, the closing one with the last token of the thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from distforge.errors import InputError
from distforge.thinking.language_model import Prediction, evaluating, head_at, require_room
from distforge.thinking.mixing import MixingHead
from distforge.thinking.positions import PositionsConfig, entropy_of
from distforge.thinking.sampling import ThoughtConfig, draw, restricted_logits, without_ids
from distforge.thinking.slot_cache import SlotCache
from distforge.thinking.tags import Tags


@dataclass
class ThinkingGeneration:
    """What was written after a prompt.

    token_ids: the visible tokens, without the one that ended it.
    finished: whether such a one came before ``max_new_tokens``.
    thoughts: (visible tokens before it, ids between the tags) of each thought.
    """

    token_ids: list[int] = field(default_factory=list)
    finished: bool = False
    thoughts: list[tuple[int, list[int]]] = field(default_factory=list)

    @property
    def emitted(self) -> int:
        """Tokens that were chosen: visible ones, the end of sequence, and those of thoughts."""
        inside = sum(len(ids) for _, ids in self.thoughts)
        return len(self.token_ids) + int(self.finished) + inside


def generate(
    lm: PreTrainedModel,
    head: MixingHead | None,
    prompts: Sequence[Sequence[int]],
    tags: Tags,
    max_new_tokens: int,
    *,
    think: bool = True,
    positions: PositionsConfig | None = None,
    thought: ThoughtConfig | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[ThinkingGeneration]:
    """Continue every prompt by at most ``max_new_tokens`` visible tokens, as one batch.

    Args:
        lm: the language model; left in the mode that it was in.
        head: weighs its predictions with and without a thought; None takes the thought's alone.
        prompts: token ids, without padding.
        think: off, the language model alone writes, as without thoughts.
        positions: after which tokens to think, counted from the prompt's end on ("all" and
            "interval" think right after the prompt first).
        thought: how thoughts are written.
        temperature: of the visible tokens; 0 takes the likeliest one.
        generator: of sampling thoughts and visible tokens; needed unless both are greedy.

    While thinking, visible text contains no tags and no padding; it never contains ids that the
    tokenizer lacks. A batch ends with its last row.

    Raises:
        InputError: an empty prompt, no generator where one is needed, or a prompt with thoughts
            and new tokens over the model's context.
    """
    positions, thought = positions or PositionsConfig(), thought or ThoughtConfig()
    samples = temperature > 0 or (think and not thought.greedy)
    if samples and generator is None:
        raise InputError("sampling needs a torch.Generator; give one, or be greedy")
    if not all(len(prompt) for prompt in prompts):
        raise InputError("a prompt is empty; give at least one token to continue")
    if not prompts or max_new_tokens < 1:
        return [ThinkingGeneration() for _ in prompts]
    with evaluating(lm):
        writer = _Writer(lm, head, prompts, tags, max_new_tokens, positions, thought, generator)
        return writer.write(think, temperature)


class _Writer:
    """One batch. Rows go in step: all write their visible token number ``count`` at once."""

    def __init__(
        self,
        lm: PreTrainedModel,
        head: MixingHead | None,
        prompts: Sequence[Sequence[int]],
        tags: Tags,
        max_new_tokens: int,
        positions: PositionsConfig,
        thought: ThoughtConfig,
        generator: torch.Generator | None,
    ) -> None:
        self._lm, self._head, self._tags = lm, head, tags
        self._positions, self._config, self._generator = positions, thought, generator
        self._new, device = max_new_tokens, lm.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        require_room(self._lm, longest + max_new_tokens + thought.max_tokens + 2)
        self._rows = [ThinkingGeneration() for _ in prompts]
        self._ends = torch.tensor(tags.ends, dtype=torch.int64, device=device)
        self._alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
        # How many more visible tokens the current thought of a row helps to write.
        self._held = torch.zeros_like(lengths)
        # Places of the next token in the text stream and in the thought stream.
        self._end, self._thought_end = lengths, lengths
        padded = [[*prompt, *[tags.pad] * (longest - len(prompt))] for prompt in prompts]
        text, self._base = _read(self._lm, torch.tensor(padded, device=device), lengths)
        self._helped = self._base
        # With a thought held, a visible token takes a slot in each stream.
        slots = longest + 2 * max_new_tokens + thought.max_tokens + 3
        self._cache = SlotCache(text, lengths, slots)

    def write(self, think: bool, temperature: float) -> list[ThinkingGeneration]:
        token: Tensor | None = None
        # Where the thought before an answer predicts all of it, nothing asks for the bare text.
        self._reads_text = self._head is not None or not think or self._positions.kind != "answer"
        by_entropy = think and self._positions.kind == "entropy"
        for count in range(self._new):
            opening = self._alive & (think and self._is_due(count))
            self._advance(token, opening)
            if by_entropy:
                opening = self._alive & (entropy_of(self._base.logits) > self._positions.threshold)
                self._advance(None, opening)
            if opening.any():
                self._think(opening, count)
            token = self._choose(think, temperature)
            if not self._alive.any():
                break
        return self._rows

    def _is_due(self, count: int) -> bool:
        """Whether every row thinks before its visible token ``count``."""
        kind = self._positions.kind
        if kind == "interval":
            return count % self._positions.interval == 0
        return kind == "all" or (kind == "answer" and count == 0)

    def _advance(self, token: Tensor | None, opening: Tensor) -> None:
        """Read the visible token in both streams; ``<think>`` where a thought opens."""
        tokens, places, valid, streams = [], [], [], []
        if (opening & (self._held > 0)).any():
            self._held = torch.where(opening, 0, self._held)
            self._cache.compact(self._held > 0)
        if token is not None:
            if self._reads_text:
                tokens.append(token)
                places.append(self._end)
                valid.append(self._alive)
                streams.append(False)
            self._end = self._end + self._alive
        continuing = (self._held > 0) & ~opening & (token is not None)
        if (opening | continuing).any():
            self._thought_end = torch.where(opening, self._end, self._thought_end)
            tags = torch.full_like(self._end, self._tags.open)
            tokens.append(tags if token is None else torch.where(opening, tags, token))
            places.append(self._thought_end)
            valid.append(opening | continuing)
            streams.append(True)
            self._thought_end = self._thought_end + valid[-1]
        if not tokens:
            return
        read = self._feed(tokens, places, valid, streams, opening=opening)
        if not streams[0]:
            self._base = read[0]
        if streams[-1]:
            self._helped = _replaced(self._helped, read[-1], valid[-1])

    def _think(self, opening: Tensor, count: int) -> None:
        """Write a thought in the rows that have just read ``<think>``, and read ``</think>``."""
        live, last = opening, torch.zeros_like(self._end)
        written: list[Tensor] = []
        for step in range(self._config.max_tokens):
            if step:
                self._feed_thought([last], [live])
            logits = restricted_logits(self._helped.logits, self._tags, self._config)
            last = self._draw(logits, greedy=self._config.greedy)
            if self._config.closing == "learned":
                live = live & (last != self._tags.close)
            written.append(torch.where(live, last, -1))
            if not live.any():
                break
        closing = torch.full_like(last, self._tags.close)
        if live.any() and written:
            self._feed_thought([last, closing], [live, opening])
        else:
            self._feed_thought([closing], [opening])
        limit = self._new if self._positions.kind == "answer" else self._positions.horizon
        self._held = torch.where(opening, limit, self._held)
        inside = torch.stack(written, dim=1).tolist() if written else [[]] * len(self._rows)
        for row in opening.nonzero()[:, 0].tolist():
            self._rows[row].thoughts.append((count, [token for token in inside[row] if token >= 0]))

    def _feed_thought(self, tokens: list[Tensor], valid: list[Tensor]) -> None:
        places = []
        for inside in valid:
            places.append(self._thought_end)
            self._thought_end = self._thought_end + inside
        read = self._feed(tokens, places, valid, [True] * len(tokens), last_only=True)
        self._helped = _replaced(self._helped, read[-1], valid[-1])

    def _choose(self, think: bool, temperature: float) -> Tensor:
        """The next visible token (B,) of each row; rows that ended keep writing padding."""
        helped = self._alive & (self._held > 0)
        logits = self._mixed(helped) if helped.any() else self._base.logits.float()
        banned = set(self._tags.absent)
        if think:
            banned |= {self._tags.open, self._tags.close, self._tags.pad} - set(self._tags.ends)
        if banned:
            logits = without_ids(logits, tuple(sorted(banned)))
        token = self._draw(logits / (temperature or 1.0), greedy=not temperature)
        ended = torch.isin(token, self._ends)
        for row, (alive, end, chosen) in enumerate(
            zip(self._alive.tolist(), ended.tolist(), token.tolist(), strict=True)
        ):
            if alive and end:
                self._rows[row].finished = True
            elif alive:
                self._rows[row].token_ids.append(chosen)
        self._alive = self._alive & ~ended
        dropped = helped & ((self._held == 1) | ended)
        self._held = (self._held - helped.long()) * self._alive
        if dropped.any():
            self._cache.compact(self._held > 0)
        return torch.where(self._alive, token, self._tags.pad)

    def _mixed(self, helped: Tensor) -> Tensor:
        """(B, V) float32 logits: with the thought where it helps, of the bare text elsewhere."""
        everywhere = bool(helped.all())
        thought = self._helped if everywhere else self._helped.of(helped)
        mixed = thought.logits.float()
        if self._head is not None:
            base = self._base if everywhere else self._base.of(helped)
            mixed = self._head.mix(base, thought)
        if everywhere:
            return mixed
        return self._base.logits.float().index_put((helped.nonzero()[:, 0],), mixed)

    def _draw(self, logits: Tensor, *, greedy: bool) -> Tensor:
        if greedy:
            return logits.argmax(dim=-1)
        assert self._generator is not None
        device = self._generator.device
        uniform = torch.rand(len(logits), generator=self._generator, device=device)
        return draw(logits, uniform.to(logits.device))[0]

    def _feed(
        self,
        tokens: list[Tensor],
        places: list[Tensor],
        valid: list[Tensor],
        streams: list[bool],
        *,
        opening: Tensor | None = None,
        last_only: bool = False,
    ) -> list[Prediction]:
        """The predictions at each column, or at the last one."""
        first = len(tokens) - 1 if last_only else 0
        ids, at = torch.stack(tokens, dim=1), torch.stack(places, dim=1)
        logits, hidden = self._cache.feed(self._lm, ids, at, valid, streams, first, opening)
        return [Prediction(logits[:, i], hidden[:, i]) for i in range(logits.shape[1])]


def _replaced(old: Prediction, new: Prediction, rows: Tensor) -> Prediction:
    """The new ones in the rows of a mask (B,)."""
    if rows.all():
        return new
    return Prediction(
        torch.where(rows[:, None], new.logits, old.logits),
        torch.where(rows[:, None], new.hidden, old.hidden),
    )


def _read(lm: PreTrainedModel, ids: Tensor, lengths: Tensor) -> tuple[DynamicCache, Prediction]:
    """The cache of the prompts (B, L), padded on the right, and what follows each."""
    cache = DynamicCache()
    ends = torch.arange(len(ids), device=ids.device) * ids.shape[1] + lengths - 1
    with head_at(lm, ends) as hidden:
        logits = lm(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return cache, Prediction(logits, hidden[0])
