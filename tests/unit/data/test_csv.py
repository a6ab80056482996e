"""A CSV file of a user's own is read as spreadsheets write it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from distforge.data import read_examples
from distforge.data.rows import open_rows
from distforge.errors import InputError

ROWS = [
    ("What is 2 + 2?", "4"),
    ('Who said "veni, vidi, vici"?', "Caesar, in Rome"),
    ("Two lines:\nwhat comes after Ä?", "Ö\nor B"),
    ("And 007?", "007"),
]


def written(path: Path, dialect: str = "excel", encoding: str = "utf-8", **options: str) -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, dialect, **options)  # type: ignore[arg-type]
        writer.writerow(("Question", "Answer"))
        writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("dialect", ["excel", "unix"])
def test_every_cell_is_text_as_it_was(
    tmp_path: Path, dialect: str, encoding: str, delimiter: str
) -> None:
    path = written(tmp_path / "mine.csv", dialect, encoding, delimiter=delimiter)
    examples = read_examples(path)
    assert [(e.question, e.answer) for e in examples] == ROWS
    # Each is found again by its number, in any order.
    assert [examples[n].answer for n in (3, 2, 0)] == [ROWS[n][1] for n in (3, 2, 0)]
    assert [e.question for e in examples.at([1, 3])] == [ROWS[1][0], ROWS[3][0]]


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv")
    rows = open_rows(path)
    assert [where for _, where in rows.scan()] == [f"{path}, line {n}" for n in (2, 3, 4, 7)]
    assert [rows.where(n) for n in range(4)] == [f"{path}, line {n}" for n in (2, 3, 4, 7)]


def test_empty_lines_and_cells_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("question,answer,strategy\n\na?,1,\n,,\nb?,2\n")
    assert [(e.question, e.answer, e.strategy) for e in read_examples(path)] == [
        ("a?", "1", ""),
        ("b?", "2", ""),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"question,answer\na,b,c\n", r"line 2: 3 cells under 2 columns \(question, answer\)"),
        (b"question,answer\nb?,1\na?,\n", "line 3: answer is None; expected non-empty text"),
        (b"question,answer\na?,\xe4\n", "line 2: not UTF-8"),
        (b'question,answer\na?,"b"c\n', "line 2: not valid CSV"),
        (b"what,answer\na?,1\n", r"line 2 has the fields answer, what; expected"),
        (b"", "holds no examples"),
        (b"question,answer\n", "holds no examples"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_examples(path)


def test_a_directory_may_hold_csv_files(tmp_path: Path) -> None:
    written(tmp_path / "train.csv")
    written(tmp_path / "test.csv")
    examples = read_examples(tmp_path)
    assert (len(examples.of_split("train")), len(examples.of_split("heldout"))) == (4, 4)
