"""The control of equal compute: trained for as many tokens, kept, and found again."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from distforge.data import make_examples
from distforge.errors import InputError
from distforge.models.loading import load_champion
from distforge.optim import OptimizerConfig
from distforge.optim.build import AdamWConfig
from distforge.quietstar.items import answer_items
from distforge.telemetry import RunConsole
from distforge.theater.conditions import ThoughtProbe
from distforge.theater.control import ControlConfig, train_control
from distforge.thinking.items import ThoughtItem
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
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
def items(start: str) -> list[ThoughtItem]:
    """Questions that fit the tiny model."""
    return answer_items(make_examples(40, 0), load_champion(start).tokenizer, LENGTH)


def train(start: str, items, tokens: int, directory, config=CONFIG, dtype="float32"):
    console = RunConsole(console=Console(quiet=True))
    return train_control(
        load_champion(start),
        items,
        tokens,
        config,
        EngineConfig(dtype="float32", qk_clip_every=0),
        WORLD,
        console,
        directory,
        dtype,
    )


@torch.no_grad()
def answer_nats(model: torch.nn.Module, items: list[ThoughtItem]) -> float:
    """Mean cost of the answers right after the questions."""
    total = 0.0
    for item in items:
        ids, target = [*item.text, *item.targets[0]], torch.tensor(item.targets[0])
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= float(scores[len(item.text) - 1 : -1].gather(-1, target[:, None]).mean())
    return total / len(items)


def test_it_learns_bare_answers_for_at_least_as_many_tokens(start, items, tmp_path):
    lengths = [len(item.text) + len(item.targets[0]) for item in items]
    tokens = 30 * 8 * sum(lengths) // len(lengths)
    control = train(start, items, tokens, tmp_path / "control")
    assert tokens <= control.tokens < tokens + 9 * max(lengths)
    assert control.steps in (30, 31)
    before = answer_nats(load_champion(start).model, items)
    assert answer_nats(control.model, items) < before - 1


def test_it_answers_what_it_was_taught_where_the_verdict_asks_it(start, tmp_path):
    _, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    asked = answer_items(make_examples(12, 1), tokenizer, LENGTH)[:4]
    control = train(start, asked * 8, 40_000, tmp_path / "control")
    probe = ThoughtProbe(control.model, asked, tags, ThoughtConfig(max_tokens=3))
    assert probe.ask("none").hits.all()


def test_it_is_found_again_and_trained_anew_where_anything_differs(start, items, tmp_path):
    directory = tmp_path / "control"
    train(start, items, 100, directory)
    weights = directory / "model.safetensors"
    first = weights.stat().st_mtime_ns
    train(start, items, 100, directory)
    assert weights.stat().st_mtime_ns == first
    train(start, items, 101, directory)
    second = weights.stat().st_mtime_ns
    assert second != first
    assert json.loads((directory / "control.json").read_text())["tokens"] == 101
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train(start, items, 101, directory).steps == 20
    assert weights.stat().st_mtime_ns != second


def test_it_is_asked_in_the_dtype_of_what_it_is_held_against(start, items, tmp_path):
    for known in (False, True):
        control = train(start, items, 100, tmp_path / "control", dtype="bfloat16")
        assert control.model.dtype == torch.bfloat16, known
    assert train(start, items, 100, tmp_path / "control").model.dtype == torch.float32


def test_one_that_cannot_be_trained_is_one_clear_error(start, items, tmp_path):
    wild = AdamWConfig(lr=float("1e30"))
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(name="adamw", adamw=wild))
    with pytest.raises(InputError, match="control of equal compute cannot be trained"):
        train(start, items, 5000, tmp_path / "control", config)
    assert not (tmp_path / "control").exists()
