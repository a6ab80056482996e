"""``distforge evaluate`` on public benchmarks, with and without thoughts."""

import pytest

from distforge.cli import BAD_INPUT, OK, main
from tests.benchmark_files import ARC_ROWS, GSM8K_ROWS, write_lines
from tests.thinking_cases import thinking_pair
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def files(tmp_path):
    gsm8k = write_lines(tmp_path / "gsm8k.jsonl", GSM8K_ROWS)
    arc = write_lines(tmp_path / "arc.jsonl", ARC_ROWS)
    return [f"--benchmarks.gsm8k={gsm8k}", f"--benchmarks.arc={arc}"]


def rows(printed: str, name: str) -> list[list[str]]:
    lines = [line.split("│")[1:-1] for line in printed.splitlines() if f"│ {name} " in line]
    return [[cell.strip() for cell in line] for line in lines]


@pytest.mark.parametrize("mixing", [False, True])
def test_a_thinking_model_is_asked_without_and_with_thoughts(tmp_path, capsys, files, mixing):
    model, tokenizer = thinking_pair(mixing=mixing)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    small = ["--benchmarks.gsm8k-shots=0", "--benchmarks.max-new-tokens=4"]
    small.append("--thought.max-tokens=4")
    assert main(["evaluate", f"--model={tmp_path / 'model'}", *files, *small]) == OK
    printed = capsys.readouterr().out
    assert [row[1:3] for row in rows(printed, "gsm8k")] == [
        ["strict", "no"], ["flexible", "no"], ["strict", "yes"], ["flexible", "yes"]]  # fmt: skip
    assert [row[1:3] for row in rows(printed, "arc")] == [
        ["acc", "no"], ["acc_norm", "no"], ["acc", "yes"], ["acc_norm", "yes"]]  # fmt: skip
    assert {row[5] for row in rows(printed, "gsm8k")} == {"3"}


def test_a_model_without_the_thinking_tokens_is_asked_without_thoughts(tmp_path, capsys, files):
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["evaluate", f"--model={tmp_path / 'model'}", files[1]]) == OK
    printed = capsys.readouterr().out
    assert "without thoughts alone: the tokenizer has no <think>" in printed
    assert [row[2] for row in rows(printed, "arc")] == ["no", "no"]


def test_nothing_to_ask_is_said(tmp_path, capsys):
    assert main(["evaluate", "--model=anything"]) == BAD_INPUT
    assert "nothing to ask" in capsys.readouterr().err
