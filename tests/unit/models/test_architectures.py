"""The made models: their size, their start, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from distforge.errors import InputError
from distforge.models.architectures import PRESETS, ArchitectureConfig, build_model, preset


def count(arch: ArchitectureConfig, vocab_size: int) -> int:
    """Parameters by hand: embedding, per layer four projections and three MLP matrices, norms."""
    d, f = arch.hidden_size, arch.intermediate_size
    kv = d // arch.num_heads * arch.num_kv_heads
    layer = 2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
    embeddings = vocab_size * d * (1 if arch.tie_word_embeddings else 2)
    return embeddings + arch.num_layers * layer + d


@pytest.mark.parametrize(("name", "low", "high"), [("embedded", 1.2e6, 1.4e6), ("25m", 24e6, 26e6)])
def test_presets_have_the_stated_size(name: str, low: float, high: float) -> None:
    for vocab_size in (512, 600):
        with torch.device("meta"):
            model = build_model(preset(name), vocab_size, 0, eos_token_id=1, pad_token_id=0)
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters == count(PRESETS[name], vocab_size)
        assert low <= parameters <= high


def test_grouped_heads_and_an_untied_head_are_built() -> None:
    arch = replace(preset("embedded"), num_heads=4, num_kv_heads=2, tie_word_embeddings=False)
    model = build_model(arch, 40, 0, eos_token_id=1, pad_token_id=0)
    assert sum(p.numel() for p in model.parameters()) == count(arch, 40)
    assert model.config.eos_token_id == 1
    assert model.config.pad_token_id == 0


def test_the_seed_decides_the_weights_and_leaves_the_callers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (
        build_model(ArchitectureConfig(), 64, seed, eos_token_id=1, pad_token_id=0)
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.rand(4), expected)
    weights = first.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in again.state_dict().items())
    assert not torch.equal(weights["lm_head.weight"], other.state_dict()["lm_head.weight"])


def test_the_start_knows_nothing_and_matrices_have_their_spread() -> None:
    arch = preset("embedded")
    model = build_model(arch, 512, 0, eos_token_id=1, pad_token_id=0)
    ids = torch.randint(2, 512, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    # ln V is the loss of the uniform guess; logits of variance s^2 add about s^2 / 2.
    assert math.log(512) - 0.1 < loss < math.log(512) + 0.5
    small = math.sqrt(2 / (5 * arch.hidden_size))
    layer = model.model.layers[2]
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(small, rel=0.03)
    written = small / math.sqrt(2 * arch.num_layers)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(written, rel=0.03)
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(written, rel=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 3}, "hidden_size = 160"),
        ({"num_heads": 32}, r"2 \* num_heads = 64"),
        ({"num_kv_heads": 2}, "num_kv_heads = 2"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(ArchitectureConfig(), **change)


def test_unknown_presets_and_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match=r"'26m' is unknown.*embedded, 25m"):
        preset("26m")
    with pytest.raises(InputError, match=r"eos_token_id = 40 should be in \[0, 40\)"):
        build_model(ArchitectureConfig(), 40, 0, eos_token_id=40, pad_token_id=0)
