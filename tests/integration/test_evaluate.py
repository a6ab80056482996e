"""``distforge evaluate`` on public benchmarks, with and without thoughts."""

import json

import pytest

from distforge.cli import BAD_INPUT, OK, main
from distforge.commands.evaluate import _accuracies
from distforge.data import make_examples
from distforge.evaluation.scoring import Answered
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
    small += ["--thought.max-tokens=4", f"--output={tmp_path / 'out'}", "--benchmarks.limit=2"]
    assert main(["evaluate", f"--model={tmp_path / 'model'}", *files, *small]) == OK
    printed = capsys.readouterr().out
    assert [row[1:3] for row in rows(printed, "gsm8k")] == [
        ["strict", "no"], ["flexible", "no"], ["strict", "yes"], ["flexible", "yes"]]  # fmt: skip
    assert [row[1:3] for row in rows(printed, "arc")] == [
        ["acc", "no"], ["acc_norm", "no"], ["acc", "yes"], ["acc_norm", "yes"]]  # fmt: skip
    assert {row[5] for row in rows(printed, "gsm8k")} == {"2"}
    lines = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    told = [(one["benchmark"], one["thoughts"], one["question"]) for one in samples]
    assert told == [
        (name, thoughts, row["question"])
        for thoughts in ("no", "yes")
        for name, asked in (("gsm8k", GSM8K_ROWS), ("arc", ARC_ROWS))
        for row in asked[:2]
    ]
    for one in samples:
        headline = {"gsm8k": "flexible", "arc": "acc_norm"}[one["benchmark"]]
        assert one["prompt"] == f"Question: {one['question']}\n"
        assert one["verdict"] == ("right" if one["measures"][headline] else "wrong")
        assert one["why"]
        assert one["verdict"] != "right" or one["answer"] == one["expected"]


def test_a_model_without_the_thinking_tokens_is_asked_without_thoughts(tmp_path, capsys, files):
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    output = f"--output={tmp_path / 'out'}"
    assert main(["evaluate", f"--model={tmp_path / 'model'}", files[1], output]) == OK
    printed = capsys.readouterr().out
    assert "without thoughts only: the tokenizer has no <think>" in printed
    assert [row[2] for row in rows(printed, "arc")] == ["no", "no"]


def test_the_limits_old_name_is_refused_with_the_new_one(tmp_path, capsys, files):
    assert main(["evaluate", "--model=any", *files, "--benchmarks.items", "2"]) == BAD_INPUT
    assert "--benchmarks.items is called --benchmarks.limit now" in capsys.readouterr().err
    (tmp_path / "own.toml").write_text('model = "any"\n[benchmarks]\nitems = 2\n')
    assert main(["evaluate", "--config", str(tmp_path / "own.toml")]) == BAD_INPUT
    told = capsys.readouterr().err
    assert "own.toml: benchmarks.items is called benchmarks.limit now" in told


def test_a_model_that_is_not_there_is_refused_before_data_is_read(tmp_path, capsys):
    words = ["--model", str(tmp_path / "absent"), "--data", str(tmp_path / "neither.jsonl")]
    assert main(["evaluate", *words]) == BAD_INPUT
    told = capsys.readouterr().err
    assert f"the model {str(tmp_path / 'absent')!r} does not exist; give a Hugging Face" in told
    assert "neither" not in told


def test_nothing_to_ask_is_said(tmp_path, capsys):
    assert main(["evaluate", "--model=anything"]) == BAD_INPUT
    assert "nothing to evaluate on" in capsys.readouterr().err


def test_every_accuracy_has_its_questions_and_an_interval() -> None:
    made = make_examples(140, 0)
    strategies = sorted({example.strategy for example in made})
    asked = [[e for e in made if e.strategy == name][: 3 + n] for n, name in enumerate(strategies)]
    answered = [
        Answered(example, "", None, correct=place == 0)
        for some in asked
        for place, example in enumerate(some)
    ]
    table = _accuracies(answered, [*strategies, "of no question"])
    name, accuracy, interval, questions = (list(column.cells) for column in table.columns)
    assert name == ["all", *strategies]
    assert questions == [str(len(answered)), *(str(len(some)) for some in asked)]
    assert accuracy[1] == "33.3%"
    # Wilson's interval of 1 in 3, as scipy.stats.binomtest(1, 3).proportion_ci(method="wilson").
    assert interval[1] == "6.1% to 79.2%"
