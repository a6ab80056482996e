"""What step 2 holds at its peak on free text, against what its dry run estimates.

By the accounting of torch's allocator: the tensors between two steps, and what a step adds to them.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from distforge.cli import main
from distforge.config import load_config
from distforge.data import THINKING_TOKENS
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.vocabulary import add_thinking_tokens
from distforge.quietstar import Step2Config
from distforge.quietstar.inputs import load_inputs
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.telemetry import RunLogger
from distforge.thinking.model import ThinkingModel
from distforge.training.distributed import World
from tests.peak_memory import held_bytes
from tests.step2_peak import second_step
from tests.thinking_cases import SILENT
from tests.tiny_models import tiny_tokenizer

TOLERANCE = 0.15
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
# The embedded model's, whose vocabulary is the tiny tokenizer's here.
SHAPE = ArchitectureConfig(
    hidden_size=160, num_layers=4, num_heads=5, num_kv_heads=5, intermediate_size=432
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the docs, on its model's shape and on enough text."""
    folder = tmp_path_factory.mktemp("free_text")
    tokenizer, draw = tiny_tokenizer(), random.Random(0)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = build_model(SHAPE, len(tokenizer), 0, eos_token_id=eos, pad_token_id=pad)
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, 0)
    export_model(model, tokenizer, folder / "model")
    known = [word for word in tokenizer.get_vocab() if word.isalpha()]
    (folder / "corpus").mkdir()
    for number in range(40):
        text = " ".join(draw.choice(known) for _ in range(300))
        (folder / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    return [
        f"--baked={folder / 'model'}",
        "--task=text",
        f"--text.path={folder / 'corpus'}",
        "--reward.kind=prediction_gain",
        "--positions.horizon=4",
        "--engine.dtype=float32",
    ]


@pytest.mark.parametrize(
    "places", [["--positions.kind=interval"], ["--positions.kind=all", "--text.tokens=48"]]
)
def test_the_dry_run_counts_the_thoughts_at_all_places(
    places: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*words, *places]
    assert main(["think", *words, "--dry-run"]) == 0
    [total] = re.findall(r"^total +([\d.]+)$", capsys.readouterr().out, re.M)
    # Two texts a step suffice: each is a micro-batch, and the second adds its gradients.
    few = ["--episodes.batch-size=2", "--episodes.episodes-per-request=2"]
    config = load_config(Step2Config, None, [*words, *few])
    before = held_bytes()
    inputs = load_inputs(config)
    thinking = ThinkingModel.wrap(inputs.baked.model, mixing=config.mixing)
    silent = RunLogger(tmp_path, SILENT, {}, "", enabled=False)
    trainer = ThoughtTrainer(
        *(thinking, inputs.baked.tokenizer, inputs.items, inputs.heldout),
        *(config, WORLD, silent, tmp_path),
    )
    with second_step(trainer, WORLD, tmp_path) as (_, batch, held, added):
        assert len(batch.micro_batches) == 2
        assert held - before + added == pytest.approx(1e6 * float(total), rel=TOLERANCE)
