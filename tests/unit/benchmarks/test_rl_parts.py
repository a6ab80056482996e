"""The parts of bench_rl, on a tiny model that has learned nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import rl_parts
import torch

from distforge.data.dataset import collate
from distforge.models.export import export_model
from tests.tiny_models import tiny_llama, tiny_tokenizer

SETTINGS = {
    "questions": 2,
    "group": 4,
    "max_tokens": 5,
    "temperature": 1.0,
    "steps": 3,
    "probe_every": 2,
    "probe_items": 4,
    "lr": 1e-3,
    "kl": 0.02,
    "train_problems": 20,
    "heldout_problems": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)), tokenizer, directory)
    return str(directory)


def test_problems_hold_their_numbers_out(tmp_path: Path) -> None:
    directory = rl_parts.problems(tmp_path, SETTINGS)
    train, heldout = (
        [json.loads(line)["question"] for line in (directory / f"{split}.jsonl").open()]
        for split in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (20, 8 + 4)
    numbers = [{tuple(re.findall(r"\d+", text)) for text in part} for part in (train, heldout)]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("reward", ["math", "shuffled"])
def test_a_run_is_measured_step_by_step_and_examined(
    model: str, tmp_path: Path, reward: str
) -> None:
    words = rl_parts.problems(tmp_path, SETTINGS)
    found = rl_parts.reinforced(model, words, tmp_path, SETTINGS, reward, 0)
    assert len(found["right"]) == SETTINGS["heldout_problems"]
    # Of three steps, a probe comes after the second: one pair of calls lies between two steps.
    assert len(found["step_cpu_seconds"]) == 1
    assert 0 < found["step_cpu_seconds"][0] < found["run_cpu_seconds"]


def test_supervised_training_ends_with_its_time_and_learns_the_answers(
    model: str, tmp_path: Path
) -> None:
    words = rl_parts.problems(tmp_path, SETTINGS)
    found = rl_parts.supervised(model, words, tmp_path, SETTINGS, 3.0)
    assert sum(found["losses"][-5:]) < 0.8 * sum(found["losses"][:5])
    assert len(found["right"]) == SETTINGS["heldout_problems"]


def test_labels_are_the_answer_alone() -> None:
    rows = rl_parts.answered([[1, 2], [1, 2, 4]], [[3], [5, 6]])
    batch = {key: value.tolist() for key, value in collate([rows[0], rows[1]], 9).items()}
    assert batch["input_ids"] == [[1, 2, 3, 9, 9], [1, 2, 4, 5, 6]]
    assert batch["attention_mask"] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"] == [[-100, -100, 3, -100, -100], [-100, -100, -100, 5, 6]]


def test_a_gain_is_of_the_same_questions() -> None:
    gained = rl_parts.gain([0] * 50 + [1] * 50, [1] * 50 + [1] * 50)
    assert (gained["before"], gained["after"], gained["gain"]["mean"]) == (0.5, 1.0, 0.5)
    assert 0.3 < gained["gain"]["low"] < 0.5 < gained["gain"]["high"] < 0.7


def test_the_exam_is_greedy(model: str, tmp_path: Path) -> None:
    words = rl_parts.problems(tmp_path, SETTINGS)
    torch.manual_seed(0)
    first = rl_parts.examine(model, words, SETTINGS)
    torch.manual_seed(1)
    assert rl_parts.examine(model, words, SETTINGS)["samples"] == first["samples"]
