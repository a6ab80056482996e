"""Which rows are held out: by the file's name, the row's own word, or a hash of the question."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from distforge.data import (
    dataset_sha256,
    make_examples,
    of_split,
    read_examples,
    write_examples,
    write_splits,
)
from distforge.errors import InputError


def rows(count: int, first: int = 0) -> list[dict]:
    return [
        {"question": f"What is {n}+1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"}
        for n in range(first, first + count)
    ]


def write(path: Path, content: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(content), path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def save_arrow(directory: Path, content: list[dict], batches: int = 3) -> None:
    """As `datasets.save_to_disk` lays one split out."""
    directory.mkdir(parents=True)
    table = pa.Table.from_pylist(content)
    name = "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(str(directory / name), table.schema) as writer:
        writer.write_table(table, max_chunksize=-(-len(content) // batches))
    state = {"_data_files": [{"filename": name}], "_split": directory.name}
    (directory / "state.json").write_text(json.dumps(state))


def counts(examples) -> tuple[int, int]:
    return len(of_split(examples, "train")), len(of_split(examples, "heldout"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_splits_keep_them(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train.{suffix}", rows(30))
    write(tmp_path / f"heldout.{suffix}", rows(4, 100))
    examples = read_examples(tmp_path)
    assert counts(examples) == (30, 4)
    assert {e.question for e in of_split(examples, "heldout")} == {
        row["question"] for row in rows(4, 100)
    }


def test_what_data_make_wrote_as_parquet_reads_back(tmp_path: Path) -> None:
    made = make_examples(140, 0)
    for split in ("train", "heldout"):
        write_examples([e for e in made if e.split == split], tmp_path / f"{split}.parquet")
    write_splits(made, tmp_path / "jsonl")
    again = read_examples(tmp_path)
    assert sorted(again, key=lambda e: e.id) == sorted(made, key=lambda e: e.id)
    assert dataset_sha256(again) == dataset_sha256(read_examples(tmp_path / "jsonl"))


def test_gsm8ks_own_folder_is_counted_once(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(30))
    write(tmp_path / "test.jsonl", rows(6, 100))
    (tmp_path / "README.md").write_text("GSM8K")
    # Names that hold a split's name are none.
    write(tmp_path / "latest.jsonl", rows(9, 200))
    write(tmp_path / "constraints.jsonl", rows(9, 300))
    examples = read_examples(tmp_path)
    assert counts(examples) == (30, 6)
    assert "test is held out" in examples.note


def test_validation_is_held_out_before_test(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", rows(10))
    write(tmp_path / "train-00001-of-00002.parquet", rows(10, 10))
    write(tmp_path / "validation-00000-of-00001.parquet", rows(3, 100))
    write(tmp_path / "test-00000-of-00001.parquet", rows(5, 200))
    examples = read_examples(tmp_path)
    assert counts(examples) == (20, 3)
    assert examples.note == "read train; validation is held out, before test, which is not read"


def test_saved_datasets_are_read(tmp_path: Path) -> None:
    save_arrow(tmp_path / "both" / "train", rows(30))
    save_arrow(tmp_path / "both" / "test", rows(6, 100))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    examples = read_examples(tmp_path / "both")
    assert counts(examples) == (30, 6)
    assert examples[29].question == "What is 29+1?"
    save_arrow(tmp_path / "one", rows(200))
    train, held = counts(read_examples(tmp_path / "one"))
    assert train + held == 200
    assert held


def test_a_single_file_is_split_by_content(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path / "all.jsonl", rows(2000)))
    train, held = counts(examples)
    assert train + held == 2000
    # Five standard deviations of a tenth of 2,000 draws.
    assert abs(held - 200) < 70
    assert f"{held:,} of its rows are held out and {train:,} trained on" in examples.note
    # The same questions, in other words about case and spaces, in another order and file.
    again = [{**row, "question": f"  {row['question'].upper()} "} for row in rows(2000)[::-1]]
    other = read_examples(write(tmp_path / "other.parquet", again))
    asked = {e.question.casefold() for e in of_split(examples, "heldout")}
    assert {e.question.casefold() for e in of_split(other, "heldout")} == asked


def test_a_few_rows_are_split_too_and_own_words_hold(tmp_path: Path) -> None:
    assert counts(read_examples(write(tmp_path / "few.jsonl", rows(3)))) == (2, 1)
    path = tmp_path / "own.jsonl"
    made = [e for e in make_examples(140, 0) if e.split == "train"]
    write_examples(made, path)
    assert counts(read_examples(path)) == (len(made), 0)
    assert counts(read_examples(write(tmp_path / "asked.jsonl", rows(5)), split="heldout")) == (
        0,
        5,
    )


def test_rows_of_others_that_name_their_split_keep_it(tmp_path: Path) -> None:
    """Nothing that a row or its file holds out is trained on; other words count as none."""
    names = ["train", "heldout", "validation", "test", "easy", None, "train"]
    named = [{**row, "split": name} for row, name in zip(rows(7), names, strict=True)]
    examples = read_examples(write(tmp_path / "all.jsonl", named))
    found = [example.split for example in examples]
    assert found[:4] == ["train", "heldout", "heldout", "heldout"]
    assert found[6] == "train"
    assert sorted(found[4:6]) == ["heldout", "train"]  # by content, and one of few is held out
    assert "2 rows of all.jsonl say none, so 1 of them are held out and 1" in examples.note
    both = {"train": named[:3], "test": [{**row, "split": "train"} for row in rows(4, 10)]}
    for name, content in both.items():
        write(tmp_path / "both" / f"{name}.parquet", content)
    assert counts(read_examples(tmp_path / "both")) == (1, 6)


def test_what_a_directory_lacks_or_has_twice_is_said(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", rows(3))
    with pytest.raises(InputError, match=r"holds no split, but mine\.jsonl; expected train\.jsonl"):
        read_examples(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", rows(3))
    with pytest.raises(InputError, match=rf"split, but {re.escape(str(tmp_path / 'data'))} does; "):
        read_examples(tmp_path)  # as a run's directory is laid out
    write(tmp_path / "train.jsonl", rows(3))
    write(tmp_path / "train.parquet", rows(3))
    with pytest.raises(InputError, match=r"several files of the split train: train\.jsonl, train"):
        read_examples(tmp_path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "saved"])
def test_any_order_any_time(tmp_path: Path, name: str) -> None:
    content = rows(50)
    if name == "saved":
        save_arrow(tmp_path / name, content)
    else:
        write(tmp_path / name, content)
    examples = read_examples(tmp_path / name, split="train")
    everything = list(examples)
    assert [e.question for e in everything] == [row["question"] for row in content]
    order = np.random.default_rng(0).permutation(50)
    assert list(examples.at(order)) == [everything[i] for i in order]
    assert [examples[i] for i in (0, 49, -1)] == [everything[i] for i in (0, 49, -1)]
    assert list(examples[10:20][::-1]) == everything[10:20][::-1]
    assert examples.where(30).startswith(str(tmp_path / name))
    with pytest.raises(IndexError):
        examples[50]


def test_places_count_empty_lines_and_changed_files_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first, second = (json.dumps(row) for row in rows(2))
    path.write_text(f"\n{first}\n\n\n{second}\n")
    examples = read_examples(path)
    assert [examples.where(n) for n in (0, 1)] == [f"{path}, line 2", f"{path}, line 5"]
    path.write_text("{}\n" * 40)
    with pytest.raises(InputError, match="changed"):
        list(examples)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Between two sizes, so that what reading needs once does not count."""

    def peak(count: int) -> int:
        text = "because of that " * 40
        path = write(tmp_path / "x.jsonl", [{**row, "answer": text} for row in rows(count)])
        tracemalloc.start()
        try:
            examples = read_examples(path)
            assert sum(1 for _ in of_split(examples, "train")) > count // 2
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Of several the lowest: what other threads of this process take can only be added.
    small, large = (min(peak(count) for _ in range(2)) for count in (4000, 24_000))
    # An offset, a share, a number and a split are 25 bytes; an array may have twice what it needs.
    assert (large - small) / 20_000 < 80
