"""The control of equal compute: trained for as many tokens, kept, and found again."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from distforge.data import Example, make_examples
from distforge.data.dataset import ReasoningDataset, encode
from distforge.data.text import completion_text, question_text
from distforge.errors import InputError
from distforge.models.loading import Champion, load_champion
from distforge.optim import OptimizerConfig
from distforge.optim.build import AdamWConfig
from distforge.telemetry import RunConsole
from distforge.theater.control import ControlConfig, train_control
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from tests.thinking_cases import thinking_pair

WORLD = World(0, 0, 1, torch.device("cpu"))
CONFIG = ControlConfig(
    batch_size=8, optimizer=OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=3e-3))
)
LENGTH = 128


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    model, tokenizer = thinking_pair()
    directory = tmp_path_factory.mktemp("start")
    model.lm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Questions that fit the tiny model."""
    return make_examples(40, 0)


def train(start: str, examples, tokens: int, directory, config=CONFIG):
    console = RunConsole(console=Console(quiet=True))
    return train_control(
        load_champion(start),
        examples,
        tokens,
        LENGTH,
        config,
        EngineConfig(dtype="float32", qk_clip_every=0),
        WORLD,
        console,
        directory,
    )


@torch.no_grad()
def answer_nats(model: torch.nn.Module, champion: Champion, examples: list[Example]) -> float:
    """Mean cost of the bare answers."""
    total, tokenizer = 0.0, champion.tokenizer
    for example in examples:
        question, answer = encode(
            tokenizer, [question_text(example.question), completion_text("", example.answer)]
        )
        scores = model(input_ids=torch.tensor([question + answer])).logits[0].log_softmax(-1)
        picked = scores[len(question) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
        total -= float(picked.mean())
    return total / len(examples)


def test_it_learns_bare_answers_for_at_least_as_many_tokens(start, examples, tmp_path):
    champion = load_champion(start)
    rows = ReasoningDataset(examples, champion.tokenizer, LENGTH, direct=[True] * len(examples))
    tokens = 30 * 8 * sum(rows.lengths) // len(rows)
    control = train(start, examples, tokens, tmp_path / "control")
    assert tokens <= control.tokens < tokens + 9 * max(rows.lengths)
    assert control.steps in (30, 31)
    fitting = rows.examples
    before = answer_nats(champion.model, champion, fitting)
    assert answer_nats(control.model, champion, fitting) < before - 1


def test_it_is_found_again_and_trained_anew_where_anything_differs(start, examples, tmp_path):
    directory = tmp_path / "control"
    train(start, examples, 100, directory)
    weights = directory / "model.safetensors"
    first = weights.stat().st_mtime_ns
    train(start, examples, 100, directory)
    assert weights.stat().st_mtime_ns == first
    train(start, examples, 101, directory)
    second = weights.stat().st_mtime_ns
    assert second != first
    assert json.loads((directory / "control.json").read_text())["tokens"] == 101
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train(start, examples, 101, directory).steps == 20
    assert weights.stat().st_mtime_ns != second


def test_one_that_cannot_be_trained_is_one_clear_error(start, examples, tmp_path):
    wild = AdamWConfig(lr=float("1e30"))
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(name="adamw", adamw=wild))
    with pytest.raises(InputError, match="control of equal compute cannot be trained"):
        train(start, examples, 5000, tmp_path / "control", config)
    assert not (tmp_path / "control").exists()
