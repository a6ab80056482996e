"""One tiny champion and one configuration, made once for all integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from distforge.cli import main
from tests.shared import build_once

CONFIG = """
name = "tiny"
checkpoint_every = 6
seed = 0
[champion]
path = "{champion}"
make = {make}
[champion.recipe]
num_examples = 700
[champion.recipe.architecture]
hidden_size = 64
num_layers = 2
num_heads = 4
num_kv_heads = 2
intermediate_size = 128
[champion.recipe.training]
max_steps = 30
batch_size = 8
micro_batches = 2
[champion.recipe.optimizer.muon_grokfast]
muon_lr = 0.02
adamw_lr = 3e-3
[data]
num_examples = 280
[training]
max_steps = 12
batch_size = 8
micro_batches = 2
[optimizer.muon_grokfast]
muon_lr = 0.02
adamw_lr = 3e-3
[evaluation]
every_steps = 6
validation_questions = 14
[telemetry]
wandb_mode = "{wandb}"
"""


@pytest.fixture(scope="session")
def work() -> Path:
    """A directory with the champion in ``champion`` and its configuration in ``tiny.toml``.

    In ``first`` is the run that made the champion, the one that also writes to W&B. All workers
    read it: whoever writes does so elsewhere.
    """
    return build_once("integration", make_work)


def make_work(root: Path) -> None:
    champion = root / "champion"
    making = root / "making.toml"
    making.write_text(CONFIG.format(champion=champion, make="true", wandb="offline"))
    text = CONFIG.format(champion=champion, make="false", wandb="disabled")
    (root / "tiny.toml").write_text(text)
    output = str(root / "first")
    assert main(["bake", "--config", str(making), "--output", output]) == 3


@pytest.fixture
def config(work: Path) -> str:
    return str(work / "tiny.toml")
