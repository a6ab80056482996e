"""Datasets on disk: JSONL and Parquet, our own rows and three schemas from outside.

Readers name file and line in every error. Writers go through a temporary file, so that a run that
is stopped leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distforge import durable
from distforge.data.rows import read_rows
from distforge.data.schema import Example, require_strategy, require_text
from distforge.data.text import extract_answer
from distforge.data.verify import EXACT
from distforge.errors import InputError

SUFFIXES = (".jsonl", ".parquet")


def write_examples(examples: Iterable[Example], path: Path) -> None:
    """Write rows to ``path`` (.jsonl or .parquet), replacing it as a whole."""
    _require_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [example.as_dict() for example in examples]
    with durable.replacing(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(rows), partial)


def read_examples(path: Path, *, split: str = "train") -> list[Example]:
    """Read a file of examples, or a directory that holds train.jsonl and heldout.jsonl.

    Rows may be our own (see `Example`), ``messages``, ``prompt``/``completion``, or the flat
    ``question, reasoning, answer, strategy, …`` form; a row from outside gets the split
    ``split``. Raises `InputError` for a missing, empty or malformed file, naming file and line.
    """
    if path.is_dir():
        parts = [path / f"{name}.jsonl" for name in ("train", "heldout")]
        return [example for part in parts for example in read_examples(part)]
    _require_suffix(path)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; make it with `distforge data make` or name a file"
        )
    examples = [_to_example(row, where, split) for row, where in read_rows(path)]
    if not examples:
        raise InputError(f"{path} holds no examples; expected one JSON object a line")
    return examples


def dataset_sha256(examples: Iterable[Example]) -> str:
    """Hex sha256 over the rows in order: equal datasets have equal hashes in any file format."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.as_dict(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def write_splits(examples: Iterable[Example], directory: Path) -> Path:
    """Write train.jsonl and heldout.jsonl, none where there are no examples; the latter's path."""
    rows = list(examples)
    for split in ("train", "heldout") if rows else ():
        write_examples([e for e in rows if e.split == split], directory / f"{split}.jsonl")
    return directory / "heldout.jsonl"


def _require_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


def _to_example(row: Mapping[str, Any], where: str, split: str) -> Example:
    if "verifier" in row:
        return Example.from_dict(row, where)
    strategy = require_strategy(row.get("strategy"), where)
    if "messages" in row:
        question, completion = _from_messages(row["messages"], where)
        reasoning, answer = _split_completion(completion, where)
    elif "completion" in row:
        question = require_text(row.get("prompt"), "prompt", where)
        completion = require_text(row["completion"], "completion", where)
        reasoning, answer = _split_completion(completion, where)
    elif "question" in row:
        question = require_text(row["question"], "question", where)
        reasoning = require_text(row.get("reasoning", ""), "reasoning", where, empty=True)
        answer = require_text(row.get("answer"), "answer", where)
    else:
        raise InputError(
            f"{where}: fields {sorted(row)}; expected an example, messages, prompt and completion, "
            "or question, reasoning, answer"
        )
    question = question.removeprefix("Question:").strip()
    return Example(
        id=f"{EXACT}-{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        split=split,
        strategy=strategy,
        task=str(row.get("task", EXACT)),
        difficulty=1,
        question=question,
        reasoning=reasoning.strip(),
        answer=answer.strip(),
        seed=0,
        verifier=EXACT,
    )


def _from_messages(messages: Any, where: str) -> tuple[str, str]:
    contents: dict[str, str] = {}
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict) and message.get("role") in ("user", "assistant"):
                contents[message["role"]] = message.get("content", "")
    question = require_text(contents.get("user"), "the user's message", where)
    return question, require_text(contents.get("assistant"), "the assistant's message", where)


def _split_completion(completion: str, where: str) -> tuple[str, str]:
    answer = extract_answer(completion)
    if not answer:
        raise InputError(f"{where}: no 'Answer:' in {completion[:60]!r}; expected one at the end")
    return completion[: completion.rindex("Answer:")], answer
