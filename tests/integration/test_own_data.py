"""Rows of one's own, without strategies, through every command: GSM8K's folder, one chat file."""

import json
from pathlib import Path

import pytest

from distforge.cli import BAD_INPUT, GOAL_MISSED, OK, main
from distforge.reports.step1_summary import Step1Summary


def row(n: int) -> dict[str, str]:
    told = f"He has {n} and buys 2: {n}+2 = <<{n}+2={n + 2}>>{n + 2}.\n#### {n + 2}"
    return {"question": f"Tom has {n} eggs and buys 2. How many?", "answer": told}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As GSM8K is published."""
    directory = tmp_path_factory.mktemp("own")
    write(directory / "train.jsonl", [row(n) for n in range(40)])
    write(directory / "test.jsonl", [row(n) for n in range(40, 46)])
    (directory / "README.md").write_text("School mathematics.")
    return directory


@pytest.fixture(scope="module")
def baked(folder: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("own_runs")
    words = ["bake", f"--config={work / 'tiny.toml'}", f"--output={output}"]
    assert main([*words, f"--data.path={folder}", "--data.max-length=200"]) == GOAL_MISSED
    return output / "tiny"


def test_accuracy_is_one_number(baked: Path) -> None:
    summary = Step1Summary.read(baked / "summary.json")
    assert (summary.questions, summary.accuracy, summary.token_usage) == (6, {}, {})
    assert len(summary.shortfalls) == 1
    assert summary.shortfalls[0].startswith("overall accuracy")
    assert summary.data_note == "read train; test is held out"
    report = (baked / "report.html").read_text()
    assert "nan" not in report.casefold().replace("finance", "")
    assert "chain of thought" not in report


def test_what_the_model_answered_is_kept(baked: Path) -> None:
    samples = [json.loads(line) for line in (baked / "samples.jsonl").read_text().splitlines()]
    assert [sample["expected"] for sample in samples] == [str(n + 2) for n in range(40, 46)]
    for sample in samples:
        assert sample["prompt"] == f"Question: {sample['question']}\n"
        assert sample["verdict"] in ("right", "wrong")
        assert sample["why"]


def test_the_other_commands_take_the_same_data(
    baked: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, asked = baked / "model", folder / "test.jsonl"
    words = ["evaluate", f"--model={model}", f"--output={tmp_path / 'asked'}"]
    assert main([*words, f"--data.path={asked}", "--max-new-tokens=8"]) == GOAL_MISSED
    printed = capsys.readouterr().out
    cells = [cell.strip() for cell in printed.split("│")]
    assert cells[cells.index("all") + 3] == "6"
    assert "nan" not in printed
    assert len((tmp_path / "asked" / "samples.jsonl").read_text().splitlines()) == 6
    words = ["think", f"--baked={baked}", f"--output={tmp_path}", "--dry-run"]
    assert main([*words, f"--data.path={folder}", "--data.max-length=200"]) == OK
    assert "40 items, 3 held out" in capsys.readouterr().out
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Answer as a pirate.")
    words = ["bake-prompt", f"--model={model}", f"--prompt={prompt}", f"--output={tmp_path}"]
    small = {"num-questions": 8, "heldout-questions": 4, "max-response-tokens": 8}
    small |= {"training.max-steps": 2, "training.batch-size": 8, "training.micro-batches": 1}
    words += [f"--baking.{name}={value}" for name, value in small.items()]
    words += ["--questions=3", "--telemetry.wandb-mode=disabled", f"--data={folder}"]
    assert main(words) in (OK, GOAL_MISSED)
    assert "data: read train; test is held out" in capsys.readouterr().out


def test_one_chat_file_is_split_and_said(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    turns = [
        [
            {"role": "system", "content": "Name the capital."},
            {"role": "user", "content": f"Land number {n}?"},
            {"role": "assistant", "content": "Seven."},
        ]
        for n in range(60)
    ]
    path = write(tmp_path / "chat.jsonl", [{"messages": messages} for messages in turns])
    words = ["bake", f"--config={work / 'tiny.toml'}", f"--output={tmp_path}"]
    assert main([*words, f"--data.path={path}"]) in (OK, GOAL_MISSED)
    said = " ".join(capsys.readouterr().out.split())
    note = Step1Summary.read(tmp_path / "tiny" / "summary.json").data_note
    assert "chat.jsonl has no splits" in note
    assert note in said
    sample = json.loads((tmp_path / "tiny" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("Name the capital.\nQuestion: Land number")


def test_check_claims_no_more_than_it_did(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "check", f"--path={folder}"]) == OK
    printed = capsys.readouterr().out
    assert "46 rows, 0 with a checker; of 46 rows only the form was checked" in printed
    assert "verified" not in printed
    assert "compared: 46 as numbers" in printed
    twice = write(tmp_path / "twice.jsonl", [row(1), row(2), row(1)])
    assert main(["data", "check", f"--path={twice}"]) == BAD_INPUT
    assert f"{twice}, line 3: the question of {twice}, line 1" in capsys.readouterr().err
