"""What both steps of configs/gtx1660.toml hold at their peak, against what its dry run estimates.

On a CPU, by the accounting of torch's allocator: the tensors between two steps, and what a step on
the longest rows adds to them. By day a smaller model, in the same settings otherwise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from distforge.cli import main
from distforge.config import load_config
from distforge.data import THINKING_TOKENS
from distforge.models.architectures import build_model
from distforge.models.vocabulary import add_thinking_tokens
from distforge.optim import build_optimizer
from distforge.pipeline import PipelineConfig
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.telemetry import RunLogger
from distforge.thinking.items import ThoughtItem
from distforge.thinking.model import ThinkingModel
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.peak_memory import held_bytes, peak_bytes
from tests.step2_peak import second_step
from tests.thinking_cases import SILENT
from tests.tiny_models import tiny_tokenizer

# Measured 0.97 to 1.01 of the estimate, small.
TOLERANCE = 0.15
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
VOCAB = 330  # as many rows as the tiny tokenizer with the thinking tokens, about
_SMALL = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4}
SIZES = {
    "small": [f"--champion.recipe.architecture.{k}={v}" for k, v in _SMALL.items()]
    + ["--champion.recipe.architecture.intermediate_size=344"],
    "25M": [],
}
by_size = pytest.mark.parametrize(
    "size",
    ["small", pytest.param("25M", marks=[pytest.mark.nightly, pytest.mark.timeout(900)])],
)


def settings(size: str, *more: str) -> list[str]:
    return [*SIZES[size], f"--champion.recipe.vocab_size={VOCAB}", *more]


@pytest.fixture
def estimates(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], list[float]]:
    """Bytes, of step 1 and step 2, with such settings."""
    monkeypatch.chdir(tmp_path)

    def ask(words: list[str]) -> list[float]:
        assert main(["run", "--config", "gtx1660", "--dry-run", *words]) == 0
        totals = re.findall(r"^total +([\d.]+)$", capsys.readouterr().out, re.M)
        return [1e6 * float(number) for number in totals]

    return ask


def champion(config: PipelineConfig, vocab: int, eos: int, pad: int) -> PreTrainedModel:
    arch = config.champion.recipe.architecture
    return build_model(arch, vocab, 0, eos_token_id=eos, pad_token_id=pad)


@by_size
def test_step_1(size: str, estimates: Callable[[list[str]], list[float]], tmp_path: Path) -> None:
    words = settings(size)
    config = load_config(PipelineConfig, Path("gtx1660"), words)
    before = held_bytes()
    engine = TrainingEngine(
        champion(config, VOCAB, 0, 1),
        lambda module: build_optimizer(module, config.optimizer),
        config.engine,
        WORLD,
        1,
    )
    rows = config.training.batch_size // config.training.micro_batches
    ids = torch.randint(2, VOCAB, (rows, config.data.max_length))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # padding, so that attention needs a real mask
    batch = {"input_ids": ids, "attention_mask": mask}
    batch["labels"] = ids.masked_fill(mask == 0, -100)
    engine.train_step([batch], 1.0, ids.numel())  # the optimizer's buffers exist from here on
    between = held_bytes() - before
    added = peak_bytes(lambda: engine.train_step([batch], 1.0, ids.numel()), tmp_path / "t.json")
    assert between + added == pytest.approx(estimates(words)[0], rel=TOLERANCE)


def items(count: int, length: int, seed: int) -> list[ThoughtItem]:
    """Questions as long as they may be."""
    draw = random.Random(seed)

    def words(number: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 300) for _ in range(number))

    return [
        ThoughtItem(f"{seed}:{n}", words(length), (length - 1,), (words(4),), words(3))
        for n in range(count)
    ]


def merge(trainer: ThoughtTrainer) -> None:
    """As before each batch, for who samples."""
    with trainer._source.whole_model():
        pass


@by_size
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_step_2(
    size: str, adapter: str, estimates: Callable[[list[str]], list[float]], tmp_path: Path
) -> None:
    """With the frozen reference, and the engine that writes the thoughts in this process."""
    words = settings(size, f"--step2.adapter={adapter}")
    config = load_config(PipelineConfig, Path("gtx1660"), words)
    assert config.step2 is not None
    before, tokenizer = held_bytes(), tiny_tokenizer()
    model = champion(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, 0)
    thinking = ThinkingModel.wrap(model, mixing=False)
    # One episode a micro-batch, as there; two of them, for the second adds its gradients.
    episodes = replace(
        config.step2.episodes, episodes=6, batch_size=2, episodes_per_request=2, micro_batches=2
    )
    learner = replace(config.step2, episodes=episodes)
    length, silent = config.data.max_length, RunLogger(tmp_path, SILENT, {}, "", enabled=False)
    trainer = ThoughtTrainer(
        *(thinking, tokenizer, items(4, length, 0), items(4, length, 1)),
        *(learner, WORLD, silent, tmp_path),
    )
    with second_step(trainer, WORLD, tmp_path) as (source, _, held, added):
        if adapter == "lora":
            added = max(added, peak_bytes(lambda: merge(trainer), tmp_path / "t.json"))
    assert source.last is not None
    assert int(source.last.lengths.max()) == config.step2.thought.max_tokens
    assert held - before + added == pytest.approx(estimates(words)[1], rel=TOLERANCE)
