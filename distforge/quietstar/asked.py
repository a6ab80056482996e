"""Questions whose answers rewards judge: prompts with any columns, from rows of any form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from distforge.activity import named
from distforge.data import DataConfig, Example, load_data
from distforge.data.examples import Part
from distforge.data.outside import held_out, share_of, split_of, to_example
from distforge.data.splits import parts_of
from distforge.errors import InputError
from distforge.rendering import Asked, Renderer
from distforge.thinking.items import ThoughtItem
from distforge.thinking.tags import OPEN

# Of a row that is a question without an answer, which a reward may not need.
_NO_ANSWER = "-"
_TURNS = {"prompt", "completion", "messages"}


@dataclass(frozen=True)
class AskedItem(ThoughtItem):
    """A question that the model answers itself. Its text is the rendered prompt but for the last
    token, which opens what is written.

    prompt: as a reward function gets it, a text or messages. columns: of its row, by name, and
    ``expected``, the answer that the row gives.
    """

    prompt: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the data: the question in it, its columns, and whether it is a conversation."""

    example: Example
    columns: dict[str, Any]
    talks: bool = False


def read_questions(config: DataConfig) -> list[Row]:
    """The rows of ``config``, in order.

    Raises:
        InputError: nothing there, or a row without a question; names file and line.
    """
    if not config.path:
        return [Row(e, {**e.as_dict(), "expected": e.answer}) for e in load_data(config)]
    parts, _ = parts_of(Path(config.path).expanduser(), None)
    rows = [row for part in parts for row in _rows(part)]
    # A question that comes again is asked once.
    return list({row.example.id: row for row in rows}.values())


def _rows(part: Part) -> list[Row]:
    rows, shares = [], []
    for row, where in part.rows.scan():
        split = split_of(row, part.split)
        rows.append(_row(row, where, split or "train"))
        shares.append(np.inf if split else share_of(rows[-1].example))
    for number in held_out(np.array(shares)).nonzero()[0]:
        held = replace(rows[number].example, split="heldout")
        rows[number] = replace(rows[number], example=held)
    return rows


def _row(row: Mapping[str, Any], where: str, split: str) -> Row:
    example = to_example(_answered(row), where, split)
    columns = {name: value for name, value in row.items() if name not in _TURNS}
    if example.answer != _NO_ANSWER:
        columns["expected"] = example.answer
    return Row(example, columns, isinstance(row.get("messages") or row.get("prompt"), list))


def _answered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, with something where no answer is."""
    if row.get("completion") is None and row.get("prompt") is not None:
        prompt = row["prompt"]
        told = row.get("answer") or row.get("solution") or _NO_ANSWER
        if isinstance(prompt, str):
            return {"question": prompt, "answer": str(told)}
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": str(told)}]}
    if row.get("question") is not None and row.get("answer") is None:
        return {**row, "answer": _NO_ANSWER}
    return row


@named("rendering questions")
def rendered(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str
) -> list[list[int]]:
    """The prompt of each row.

    A tokenizer with the thinking tokens has its prompts end with ``<think>``: that is how step 1
    taught the model to answer.

    Args:
        instruction: what the model is told before each question; may be empty.
    """
    renderer = Renderer(tokenizer)
    prompts = renderer.prompts(
        [Asked(r.example.question, instruction, r.example.turns) for r in rows]
    )
    opening = tokenizer.get_vocab().get(OPEN)
    if opening is None or renderer.opened:
        return prompts
    return [[*prompt, opening] for prompt in prompts]


def asked_items(
    rows: Sequence[Row], prompts: Sequence[Sequence[int]], longest: int
) -> list[AskedItem]:
    """Items of the rows whose prompts, as `rendered`, have at most ``longest`` tokens.

    Raises:
        InputError: no prompt is short enough.
    """
    items = [
        AskedItem(
            id=row.example.id,
            text=tuple(prompt[:-1]),
            positions=(len(prompt) - 2,),
            targets=((),),
            prompt=_prompt(row),
            columns=row.columns,
        )
        for row, prompt in zip(rows, prompts, strict=True)
        if len(prompt) <= longest
    ]
    if not items:
        shortest = min((len(prompt) for prompt in prompts), default=0)
        raise InputError(
            f"none of {len(rows)} questions fits {longest} tokens, which data.max_length and the "
            f"model's context leave for them next to the answer: the shortest has {shortest}; "
            "shorten them, or lower thought.max_tokens"
        )
    return items


def opening_of(prompts: Sequence[Sequence[int]]) -> int:
    """The token that all prompts end with.

    Raises:
        InputError: they end with different ones.
    """
    ends = {prompt[-1] for prompt in prompts}
    if len(ends) != 1:
        raise InputError(
            f"the prompts end with {len(ends)} different tokens, so no one token opens an answer; "
            "give the tokenizer a chat template"
        )
    return ends.pop()


def rows_sha256(rows: Iterable[Row]) -> str:
    """Of their columns and splits, in order."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row.example.split, row.example.question, row.columns], default=str)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Those that every row has."""
    common = set(rows[0].columns) if rows else set()
    for row in rows:
        common &= row.columns.keys()
    return sorted(common)


def in_lists(items: Sequence[AskedItem]) -> dict[str, list[Any]]:
    """The columns of the items, a list each; None where a row lacks one."""
    names: Iterator[str] = iter(sorted({name for item in items for name in item.columns}))
    return {name: [item.columns.get(name) for item in items] for name in names}


def said_last(prompt: Any) -> str:
    """Of a prompt as a reward function gets it, the text that is answered."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _prompt(row: Row) -> Any:
    """As the data have it: messages of a conversation, else a text."""
    example = row.example
    if row.talks or example.context:
        return [*example.turns, {"role": "user", "content": example.question}]
    return example.question
