import subprocess
import sys

import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.optim import (
    AdamWConfig,
    MuonGrokfast,
    MuonGrokfastConfig,
    OptimizerConfig,
    build_optimizer,
)
from tests.tiny_models import tiny_gpt2, tiny_llama


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    tokens = torch.randint(2, 64, (4, 24), generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["muon_grokfast", "adamw"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_tiny_language_model_learns_a_batch(name, build):
    model = build(64)
    config = OptimizerConfig(
        name=name,
        muon_grokfast=MuonGrokfastConfig(muon_lr=0.02, adamw_lr=0.02),
        adamw=AdamWConfig(lr=0.02),
    )
    losses = train(model, build_optimizer(model, config), 25)
    assert losses[-1] < 0.5 * losses[0]


def test_every_group_has_its_initial_rate():
    for name in ("muon_grokfast", "adamw"):
        optimizer = build_optimizer(tiny_llama(64), OptimizerConfig(name=name))
        assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)


def test_names_build_what_the_model_builds_where_types_say_nothing_more():
    config = OptimizerConfig(muon_grokfast=MuonGrokfastConfig(muon_lr=0.02))
    first, second = tiny_llama(64), tiny_llama(64)
    train(first, build_optimizer(first, config), 3)
    train(second, MuonGrokfast(second.named_parameters(), config.muon_grokfast), 3)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_adamw_decays_matrices_only_and_takes_tied_weights_once():
    model = tiny_gpt2(64)
    config = OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=0.1, weight_decay=0.2))
    optimizer = build_optimizer(model.named_parameters(remove_duplicate=False), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)
    assert {param.ndim for param in vectors["params"]} == {1}
    trained = len(matrices["params"]) + len(vectors["params"])
    assert trained == len(list(model.parameters()))


def test_a_frozen_model_is_refused():
    for name in ("muon_grokfast", "adamw"):
        with pytest.raises(InputError, match="no trainable parameter"):
            build_optimizer(nn.Linear(4, 4).requires_grad_(False), OptimizerConfig(name=name))


def test_only_torch_is_imported():
    program = (
        "import sys, distforge.optim\n"
        "heavy = {'deepspeed', 'transformers', 'ray', 'wandb', 'mlflow', 'tyro'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
