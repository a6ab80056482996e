"""From examples to tensors: `ReasoningDataset`, and the plan that cuts it into micro-batches."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from distforge.activity import counted
from distforge.data.columns import Names, TokenParts
from distforge.data.examples import at, blocks
from distforge.data.schema import Example
from distforge.data.strategies import STRATEGIES, STRATEGY_PROMPTS
from distforge.data.text import completion_text
from distforge.errors import InputError
from distforge.rendering import Asked, Renderer

IGNORE_INDEX = -100
_STRATEGIES = ("", *STRATEGIES)
# Examples that are tokenized at once.
_PORTION = 1024


class Row(TypedDict):
    """One row; tensors of shape (length,), int64."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class Item(Row):
    """One tokenized example."""

    strategy: str


class TokenRows(Dataset[Row]):
    """Rows of token ids, each with the place from which on a model should write it.

    All ids stand in one array of 4 bytes each: as Python's integers they would take some 40.

    Args:
        rows: ids, and how many of them are given; read once, in order.
        ids: names of the rows, for records.

    Attributes:
        tokens: of all rows, end to end; ends: where each row does.
    """

    def __init__(self, rows: Iterable[tuple[Sequence[int], int]], ids: Sequence[str]) -> None:
        self.ids = ids
        self.lengths, self.target_counts = array("i"), array("i")
        ids_of_all, self.ends = array("i"), array("q")
        self.tokens: array[int] | TokenParts = ids_of_all
        for tokens, start in rows:
            ids_of_all.extend(tokens)
            self.ends.append(len(ids_of_all))
            self.lengths.append(len(tokens))
            self.target_counts.append(len(tokens) - start)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        end, length = self.ends[index], self.lengths[index]
        tokens = torch.tensor(self.tokens[end - length : end], dtype=torch.int64)
        labels = tokens.clone()
        labels[: length - self.target_counts[index]] = IGNORE_INDEX
        return Row(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels)


class ReasoningDataset(TokenRows):
    """Tokenized examples: question, reasoning, answer, end of the turn.

    ``labels`` equal ``input_ids`` on what the model should write and are −100 on the question (and,
    after `collate`, on padding). A row is the very ids that generation starts from, and what should
    follow them; see `Renderer`.

    Args:
        examples: the rows; ``prompted`` and ``direct`` pick by position how each is written.
        tokenizer: any Hugging Face tokenizer with an end-of-sequence token.
        max_length: longest example in tokens. Longer ones are left out, never cut; `too_long`
            counts them.
        prompted: for each example, whether its strategy prompt stands in front.
        direct: for each example, whether the bare answer is written instead of the reasoning.
        is_part: there are other examples, so that it may be that none of these fits.

    Attributes:
        positions: in what was given, of the examples that are rows.
        shortest: tokens and id of the shortest example that was given.
        strategies: a byte for each row, which `Item.strategy` is made of.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or nothing fits ``max_length``.
    """

    ids: Names

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        *,
        prompted: Sequence[bool] | None = None,
        direct: Sequence[bool] | None = None,
        is_part: bool = False,
    ) -> None:
        self._renderer = Renderer(tokenizer)
        self.positions, names = array("q"), Names()
        self.shortest: tuple[float, str] = (math.inf, "")
        self.strategies = bytearray()

        def fitting() -> Iterator[tuple[list[int], int]]:
            written = self._written(examples, prompted or (), direct or ())
            told = counted(written, "tokenizing examples", len(examples))
            for position, (example, ids, asked) in enumerate(told):
                if len(ids) < self.shortest[0]:
                    self.shortest = len(ids), example.id
                if len(ids) <= max_length:
                    self.positions.append(position)
                    names.append(example.id)
                    self.strategies.append(_STRATEGIES.index(example.strategy))
                    yield ids, asked

        super().__init__(fitting(), names)
        self.too_long = len(examples) - len(self.positions)
        if not is_part:
            require_fitting(len(self), len(examples), max_length, self.shortest)
        self.examples = at(examples, self.positions)

    def __getitem__(self, index: int) -> Item:
        strategy = _STRATEGIES[self.strategies[index]]
        return Item(**super().__getitem__(index), strategy=strategy)

    def _written(
        self, examples: Sequence[Example], prompted: Sequence[bool], direct: Sequence[bool]
    ) -> Iterator[tuple[Example, list[int], int]]:
        """Every example, its ids, and how many of them ask; a portion at a time."""
        renderer = self._renderer
        flags = zip_longest(prompted, direct, fillvalue=False)
        for part in blocks(examples, _PORTION):
            marks = [next(flags, (False, False)) for _ in part]
            prompts = [
                STRATEGY_PROMPTS.get(e.strategy, "") if p else ""
                for e, (p, _) in zip(part, marks, strict=True)
            ]
            questions = [
                Asked(e.question, prompt, e.turns) for e, prompt in zip(part, prompts, strict=True)
            ]
            completions = [
                completion_text("" if d else e.reasoning, e.answer)
                for e, (_, d) in zip(part, marks, strict=True)
            ]
            for example, asked, told in zip(
                part, renderer.prompts(questions), renderer.completions(completions), strict=True
            ):
                yield example, [*asked, *told], len(asked)


def require_fitting(fitting: int, given: int, max_length: int, shortest: tuple[float, str]) -> None:
    """`InputError` where none of the examples fits; see `ReasoningDataset`."""
    if not fitting:
        length, name = shortest
        raise InputError(
            f"none of {given} examples fits max_length {max_length}: the shortest, {name}, has "
            f"{length:g} tokens; raise data.max_length or give shorter rows"
        )


def collate(items: Iterable[Row], pad_token_id: int) -> dict[str, Tensor]:
    """Pad items on the right to (batch, longest); padding is masked and carries label −100."""
    rows = list(items)
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
    return {
        key: torch.nn.utils.rnn.pad_sequence(
            [row[key] for row in rows],  # type: ignore[literal-required]
            batch_first=True,
            padding_value=fill,
        )
        for key, fill in fills.items()
    }


class BatchPlan:
    """Which examples form which micro-batch of which step; the same on every rank.

    Each step takes ``batch_size`` examples at random, sorts them by length and cuts them into
    ``micro_batches`` of equal padded cost: padding stays low, and a step still mixes all lengths
    (so all tasks), which whole batches of one length would not. The plan depends on ``seed`` and
    step alone, so ranks agree without talking and a resumed run continues where it was.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, micro_batches: int, seed: int
    ) -> None:
        if not 0 < micro_batches <= batch_size:
            raise InputError(
                f"micro_batches is {micro_batches}; expected 1 to batch_size ({batch_size})"
            )
        if len(lengths) < batch_size:
            raise InputError(
                f"batch_size is {batch_size}, but only {len(lengths)} examples are there"
            )
        self._lengths = lengths
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._seed = seed

    @property
    def steps_per_epoch(self) -> int:
        return len(self._lengths) // self._batch_size

    def epoch(self, number: int, first_step: int = 0) -> Iterator[list[list[int]]]:
        """The steps of epoch ``number`` from ``first_step`` on: micro-batches of indices."""
        order = list(range(len(self._lengths)))
        random.Random(f"{self._seed}:{number}").shuffle(order)
        for step in range(first_step, self.steps_per_epoch):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            yield self._cut(sorted(chosen, key=lambda index: (self._lengths[index], index)))

    def steps(self, first: int = 0) -> Iterator[list[list[int]]]:
        """The steps from number ``first`` on, epoch after epoch, without end."""
        number, step = divmod(first, self.steps_per_epoch)
        while True:
            yield from self.epoch(number, step)
            number, step = number + 1, 0

    def _cut(self, indices: list[int]) -> list[list[int]]:
        """Cut sorted indices where the running padded cost passes each equal share."""
        cost = [self._lengths[index] for index in indices]
        share, total = sum(cost) / self._micro_batches, 0.0
        parts: list[list[int]] = [[]]
        for position, index in enumerate(indices):
            left = len(indices) - position
            missing = self._micro_batches - len(parts)
            full = total >= share * len(parts) or left <= missing
            if parts[-1] and missing and full:
                parts.append([])
            parts[-1].append(index)
            total += cost[position]
        return parts


def read_micro_batch(
    dataset: TokenRows, indices: Sequence[int], pad_token_id: int
) -> Mapping[str, Tensor]:
    """The tensors of one micro-batch of a `BatchPlan`."""
    return collate((dataset[index] for index in indices), pad_token_id)
