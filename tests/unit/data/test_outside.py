"""Rows as others write them: OpenAI's and TRL's files, GSM8K's, and the specification's."""

import json
from pathlib import Path

import pytest

from distforge.data import Example, Message, read_examples
from distforge.errors import InputError

GSM8K = {
    "question": "Natalia sold clips to 48 friends, and half as many in May. How many in all?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\n"
    "In all 48+24 = <<48+24=72>>72 clips.\n#### 72",
}


def read(tmp_path: Path, row: dict) -> Example:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = read_examples(path, split="train")
    return example


def test_gsm8k_as_it_is_published(tmp_path: Path) -> None:
    example = read(tmp_path, GSM8K)
    assert example.question == GSM8K["question"]
    # The calculator's marks go: no model here has the calculator.
    told = "In May she sold 48/2 = 24 clips.\nIn all 48+24 = 72 clips."
    assert example.reasoning == f"<think>{told}</think>"
    assert (example.answer, example.strategy, example.verifier) == ("72", "", "exact")


def test_openais_conversation(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "And of "}, {"type": "text", "text": "Italy?"}]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "The capital of France?"},
        {"role": "assistant", "content": "Paris.", "weight": 0},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Rome."},
    ]
    example = read(tmp_path, {"messages": turns})
    assert example.context == (
        Message("system", "Be brief."),
        Message("user", "The capital of France?"),
        Message("assistant", "Paris."),
    )
    assert (example.question, example.reasoning, example.answer) == ("And of Italy?", "", "Rome.")


def test_trls_prompt_and_completion(tmp_path: Path) -> None:
    plain = read(tmp_path, {"prompt": "What is 2+3?", "completion": "2+3=5\nAnswer: 5"})
    assert (plain.reasoning, plain.answer) == ("<think>2+3=5</think>", "5")
    turns = {
        "prompt": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "What is 2+3?"},
        ],
        "completion": [{"role": "assistant", "content": r"2+3=5, so \boxed{5}"}],
    }
    spoken = read(tmp_path, turns)
    assert spoken.context == (Message("system", "Add."),)
    assert spoken.question == "What is 2+3?"
    assert spoken.reasoning == r"<think>2+3=5, so \boxed{5}</think>"
    assert spoken.answer == "5"


def test_a_thought_ends_where_its_tag_does(tmp_path: Path) -> None:
    tagged = read(tmp_path, {"prompt": "Hi?", "completion": "<think>Greet.</think>\n\nHello!"})
    assert (tagged.reasoning, tagged.answer) == ("<think>Greet.</think>", "Hello!")
    apart = {"role": "assistant", "content": "Hello!", "reasoning_content": "Greet."}
    assert (
        read(tmp_path, {"messages": [{"role": "user", "content": "Hi?"}, apart]}).reasoning
        == "<think>Greet.</think>"
    )


def test_the_specifications_flat_row(tmp_path: Path) -> None:
    row = {"question": "What is 2+3?", "reasoning": "2+3=5", "answer": "5", "strategy": None}
    example = read(tmp_path, row)
    assert (example.reasoning, example.answer) == ("<think>2+3=5</think>", "5")
    assert example.strategy == ""


def test_a_row_reads_back_as_it_was(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    example = read(tmp_path, {"messages": turns})
    assert read(tmp_path, example.as_dict()) == example


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "once"}, "line 1 has the fields text; expected question and answer, "),
        ({"question": "q", "answer": " "}, "line 1: answer is ' '; expected non-empty text"),
        ({"question": "q", "answer": "so\n#### "}, "line 1: answer is ''; expected non-empty"),
        ({"messages": [{"role": "user", "content": "q"}]}, "the roles are: user; end the"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "messages[0] has the role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "are no text"),
        ({"messages": [{"role": "user"}]}, "content of a message (user) is None"),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": []}, "the roles are: user"),
        ({"question": "q", "answer": "5", "strategy": "guess"}, "unknown strategy 'guess'"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, row)
    assert "rows.jsonl, line 1" in str(caught.value)
    assert message in str(caught.value)
