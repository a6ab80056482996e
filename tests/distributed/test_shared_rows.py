"""Rows that ranks tokenize together, against those that one process makes alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distforge import durable
from distforge.data import Example, ReasoningDataset, make_examples
from distforge.errors import InputError
from distforge.rendering import Renderer
from distforge.training.distributed import World
from distforge.training.shared_rows import tokenize_together
from tests.distributed.harness import run_ranks
from tests.tiny_models import tiny_tokenizer

MANY = 4000


def examples() -> list[Example]:
    """The longest last, so that the last rank's share may fit nowhere."""
    return sorted(make_examples(70, 0), key=lambda example: len(example.reasoning))


def content(dataset: ReasoningDataset) -> list[Any]:
    """All that is to be known of it, as JSON would have it."""
    rows = [dataset[n] for n in range(len(dataset))]
    return [
        [(row["input_ids"].tolist(), row["labels"].tolist(), row["strategy"]) for row in rows],
        list(dataset.ids),
        [example.id for example in dataset.examples],
        list(dataset.lengths),
        list(dataset.target_counts),
        dataset.too_long,
        dataset.shortest,
    ]


def together(
    world: World, folders: Sequence[Path], max_length: int, fails: bool = False
) -> tuple[Any, int, bool]:
    """The dataset, how many examples this rank tokenized, and whether its tokens are mapped."""
    tempfile.tempdir = str(folders[world.rank])
    told: list[int] = []
    genuine = Renderer.completions

    def count(renderer: Renderer, texts: Sequence[str]) -> list[list[int]]:
        told.append(len(texts))
        return genuine(renderer, texts)

    def refuse(path: Path, pieces: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    Renderer.completions = count  # type: ignore[method-assign]
    if fails and world.rank == 1:
        durable.write_pieces = refuse  # type: ignore[assignment]
    direct = [n % 2 == 0 for n in range(70)]
    dataset = tokenize_together(examples(), tiny_tokenizer(), max_length, world, direct=direct)
    parts = getattr(dataset.tokens, "_parts", [])
    mapped = bool(parts) and all(isinstance(part, np.memmap) for part in parts if len(part))
    return content(dataset), sum(told), mapped


def alone(max_length: int) -> list[Any]:
    direct = [n % 2 == 0 for n in range(70)]
    return content(ReasoningDataset(examples(), tiny_tokenizer(), max_length, direct=direct))


def test_each_tokenizes_its_share_and_maps_them_all(tmp_path: Path) -> None:
    found = run_ranks(3, together, [tmp_path] * 3, MANY)
    assert [told for _, told, _ in found] == [23, 23, 24]
    assert all(mapped for _, _, mapped in found)
    for rows, _, _ in found:
        assert rows == alone(MANY)
    assert not list(tmp_path.iterdir())


def test_a_share_of_which_nothing_fits(tmp_path: Path) -> None:
    limit = sorted(alone(MANY)[3][:35])[10]
    found = run_ranks(2, together, [tmp_path] * 2, limit)
    assert [rows for rows, _, _ in found] == [alone(limit)] * 2


def refused(world: World, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        together(world, [folder] * 2, 4)
    return str(error.value)


def test_nothing_that_fits_is_said_on_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        alone(4)
    assert run_ranks(2, refused, tmp_path) == [str(error.value)] * 2


def test_on_machines_of_their_own_each_tokenizes_everything(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    found = run_ranks(2, together, folders, MANY)
    assert found == [(alone(MANY), 70, False)] * 2


def test_where_there_is_no_room_each_tokenizes_everything(tmp_path: Path) -> None:
    found = run_ranks(2, together, [tmp_path] * 2, MANY, True)
    assert found == [(alone(MANY), 35 + 70, False)] * 2
    assert not list(tmp_path.iterdir())
