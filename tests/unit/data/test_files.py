"""Reading and writing datasets: round trips, foreign schemas, and errors that name the line."""

import json
from pathlib import Path

import pytest

from distforge.data import dataset_sha256, make_examples, read_examples, write_examples
from distforge.errors import InputError


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    examples = make_examples(140, 0)
    write_examples(examples, tmp_path / f"x.{suffix}")
    again = read_examples(tmp_path / f"x.{suffix}")
    assert list(again) == examples
    assert dataset_sha256(again) == dataset_sha256(examples)
    assert [p.name for p in tmp_path.iterdir()] == [f"x.{suffix}"]


def test_directory_of_two_splits(tmp_path: Path) -> None:
    examples = make_examples(140, 0)
    for split in ("train", "heldout"):
        write_examples([e for e in examples if e.split == split], tmp_path / f"{split}.jsonl")
    assert {e.id for e in read_examples(tmp_path)} == {e.id for e in examples}


ROWS = {
    "messages": {
        "messages": [
            {"role": "user", "content": "What is 2+3?"},
            {"role": "assistant", "content": "<think>2+3=5</think>\nAnswer: 5"},
        ],
        "strategy": "chain_of_thought",
    },
    "completion": {
        "prompt": "Question: What is 2+3?\n",
        "completion": "<think>2+3=5</think>\nAnswer: 5",
        "strategy": "chain_of_thought",
    },
    "flat": {
        "question": "What is 2+3?",
        "reasoning": "<think>2+3=5</think>",
        "answer": "5",
        "strategy": "chain_of_thought",
        "model": "someone",
        "tokens_used": 12,
        "cost_usd": 0.0,
        "metadata": {},
    },
}


@pytest.mark.parametrize("schema", ROWS)
def test_schemas_from_outside(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ROWS[schema]) + "\n")
    (example,) = read_examples(path, split="heldout")
    assert example.question == "What is 2+3?"
    assert example.reasoning == "<think>2+3=5</think>"
    assert (example.answer, example.split, example.verifier) == ("5", "heldout", "exact")


GOOD = json.dumps(ROWS["flat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples"),
        (f"{GOOD}\n{{oops\n", "line 2: not valid JSON"),
        (f"{GOOD}\n\n[1]\n", "line 3: expected a JSON object"),
        (GOOD.replace("chain_of_thought", "guessing"), "line 1: unknown strategy 'guessing'"),
        (GOOD.replace('"5"', "5"), "line 1: answer is 5"),
        (json.dumps({"strategy": "self_doubt", "text": "x"}), "line 1 has the fields"),
        (
            json.dumps({"prompt": "q", "completion": "Answer: ", "strategy": "self_doubt"}),
            "line 1: answer is ''",
        ),
        (json.dumps({"messages": [], "strategy": "self_doubt"}), "line 1: the user's message"),
        (json.dumps({"verifier": "exact", "id": "a"}), "line 1: field 'split' is missing"),
        ("\x80\x81\n", "line 1: not valid JSON"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_examples(path)
    assert "bad.jsonl" in str(caught.value)


def test_missing_file_wrong_suffix_and_broken_parquet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_examples(tmp_path / "none.jsonl")
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(InputError, match=r"ends in '\.xlsx'"):
        read_examples(tmp_path / "x.xlsx")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_examples(tmp_path / "x.parquet")
