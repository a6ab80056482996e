"""A champion of random weights and a configuration: step 1 in seconds, for runs that are broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distforge.data import make_examples
from distforge.data.text import completion_text
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.tokenizer import train_tokenizer
from distforge.rendering.plain import question_text
from tests.faults.registry_server import PASSWORD, running_server
from tests.shared import build_once

CONFIG = """
name = "tiny"
checkpoint_every = 3
keep_checkpoints = true
[champion]
path = "{champion}"
[data]
num_examples = 140
[training]
max_steps = 8
batch_size = 8
micro_batches = 2
[optimizer.muon_grokfast]
muon_lr = 0.02
adamw_lr = 3e-3
[evaluation]
every_steps = 4
validation_questions = 7
[telemetry]
wandb_mode = "disabled"
[registry]
enabled = false
"""


@pytest.fixture(scope="session")
def config() -> Path:
    """The configuration's file: eight steps, checkpoints at 3, 6 and 8, evaluations at 4 and 8."""
    return build_once("faults", make_champion) / "tiny.toml"


def make_champion(root: Path) -> None:
    examples = make_examples(140, 0)
    texts = (question_text(e.question) + completion_text(e.reasoning, e.answer) for e in examples)
    tokenizer = train_tokenizer(texts, 700)
    shape = ArchitectureConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64
    )
    model = build_model(
        shape,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    export_model(model, tokenizer, root / "champion")
    (root / "tiny.toml").write_text(CONFIG.format(champion=root / "champion"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the ranks: sums are taken in the same order, and tiny matrices are faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `server` keeps its state."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def server(place: Path) -> Iterator[str]:
    """A registry server on SQLite, with authentication; its administrator is ``admin``."""
    with running_server(place, password=PASSWORD) as url:
        yield url
