"""Datasets on disk: JSONL, CSV, Parquet and saved Hugging Face datasets, our own rows and others'.

Readers name file and line in every error. Writers go through a temporary file, so that a run that
is stopped leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from distforge import durable
from distforge.activity import counted
from distforge.data.examples import Examples, blocks, of_split, open_examples
from distforge.data.schema import Example
from distforge.data.splits import parts_of
from distforge.errors import InputError

_WRITTEN = (".jsonl", ".parquet")
# Examples that are written at once, and rows of a group in a Parquet file.
_BLOCK = 4096


def write_examples(examples: Iterable[Example], path: Path) -> None:
    """Write rows to ``path`` (.jsonl or .parquet), replacing it as a whole."""
    if path.suffix not in _WRITTEN:
        raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(_WRITTEN)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.replacing(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(example.as_dict(), ensure_ascii=False) + "\n" for example in examples
                )
        else:
            _write_parquet(examples, partial)


def _write_parquet(examples: Iterable[Example], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = ("id", "split", "strategy", "task", "question", "reasoning", "answer", "verifier")
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    kinds = {**dict.fromkeys(texts, pa.string()), "difficulty": pa.int64(), "seed": pa.int64()}
    kinds |= {"checks": pa.list_(pa.string()), "context": pa.list_(message)}
    schema = pa.schema([(name, kinds[name]) for name in Example.__dataclass_fields__])
    with parquet.ParquetWriter(path, schema) as writer:
        for block in blocks(examples, _BLOCK):
            rows = [example.as_dict() for example in block]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def read_examples(path: Path, *, split: str | None = None) -> Examples:
    """The examples of a file or a directory, read when they are asked for.

    Rows may be our own (see `Example`) or in any form of `distforge.data.outside`. A directory
    holds a file for each split, train and heldout, validation or test (.jsonl, .parquet or .csv),
    or what ``datasets.save_to_disk`` wrote. Rows of a single file that do not say their split get
    ``split``, or are split by their content: a tenth is held out. `Examples.note` says which.

    Raises:
        InputError: nothing there that can be read, or a malformed row: names file and line.
    """
    return open_examples(*parts_of(path, split))


def dataset_sha256(examples: Iterable[Example]) -> str:
    """Hex sha256 over the rows in order: equal datasets have equal hashes in any file format."""
    digest = hashlib.sha256()
    for example in counted(examples, "computing the sha256 of the data"):
        digest.update(json.dumps(example.as_dict(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def write_splits(examples: Sequence[Example], directory: Path) -> Path:
    """Write train.jsonl and heldout.jsonl, none where there are no examples; the latter's path."""
    for split in ("train", "heldout") if len(examples) else ():
        write_examples(of_split(examples, split), directory / f"{split}.jsonl")
    return directory / "heldout.jsonl"
