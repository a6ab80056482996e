"""Merging, keeping and refusing what a bake changed."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from distforge.baking.prompt.delta import (
    Delta,
    add_adapter,
    is_adapter,
    lora_config,
    read_delta,
    weights_sha256,
    with_explicit_modules,
)
from distforge.baking.prompt.prompt_config import LoraSettings
from distforge.errors import InputError
from tests.baking_cases import MODELS, model

RANK, ALPHA = 4, 12.0
IDS = torch.tensor([[5, 9, 40, 41, 60]])


def lora_delta(family: str = "llama") -> Delta:
    """An adapter with weights of its own on every linear layer."""
    carrier = model(family)
    settings = LoraSettings(rank=RANK, alpha=ALPHA)
    add_adapter(carrier, lora_config(settings))
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in carrier.named_parameters()
        if is_adapter(name)
    }
    adapter = with_explicit_modules(lora_config(settings), carrier)
    return Delta(state, adapter, weights_sha256(model(family)))


def full_delta() -> Delta:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model().named_parameters()
    }
    return Delta(state, None, weights_sha256(model()))


def by_hand(family: str, delta: Delta, strength: float) -> dict[str, torch.Tensor]:
    """W + s (alpha / r) B A, and W + s D."""
    weights = {name: p.detach().clone() for name, p in model(family).named_parameters()}
    for name in weights:
        if delta.adapter is None:
            weights[name] += strength * delta.state[name]
            continue
        stem = name.removesuffix(".weight")
        a = delta.state.get(f"{stem}.lora_A.default.weight")
        if a is not None:
            change = delta.state[f"{stem}.lora_B.default.weight"] @ a * (ALPHA / RANK)
            transposed = family == "gpt2"  # Conv1D keeps (in, out)
            weights[name] += strength * (change.T if transposed else change)
    return weights


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("family", MODELS)
def test_merged_weights_are_the_formulas(family: str, strength: float) -> None:
    base = model(family)
    delta = lora_delta(family)
    merged = delta.merge(base, strength)
    expected = by_hand(family, delta, strength)
    ours = dict(merged.named_parameters())
    assert ours.keys() == expected.keys()
    assert all(torch.allclose(ours[n], expected[n], atol=1e-5) for n in expected)
    assert weights_sha256(base) == delta.base_sha256
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert (strength == 0) == (weights_sha256(merged) == delta.base_sha256)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_differences_of_all_weights_scale_too(strength: float) -> None:
    delta = full_delta()
    merged = delta.merge(model(), strength)
    expected = by_hand("llama", delta, strength)
    assert all(torch.allclose(p, expected[n]) for n, p in merged.named_parameters())
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_strengths_out_of_range_are_refused(strength: float) -> None:
    with pytest.raises(InputError, match=r"strength is .* \[0, 1.5\]"):
        lora_delta().merge(model(), strength)


@pytest.mark.parametrize("delta", [lora_delta(), full_delta()], ids=["lora", "full"])
def test_kept_and_read_back(tmp_path, delta: Delta) -> None:
    directory = tmp_path / "adapter"
    delta.save(directory, {"prompt": "p"})
    again, record = read_delta(directory, model())
    assert record["prompt"] == "p"
    ours, theirs = again.merge(model(), 0.5), delta.merge(model(), 0.5)
    assert weights_sha256(ours) == weights_sha256(theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("family", MODELS)
def test_the_adapter_is_one_that_peft_reads(tmp_path, family: str) -> None:
    delta = lora_delta(family)
    delta.save(tmp_path / "adapter", {})
    theirs = PeftModel.from_pretrained(model(family), tmp_path / "adapter").eval()
    ours = delta.merge(model(family))
    with torch.no_grad():
        gap = (ours(input_ids=IDS).logits - theirs(input_ids=IDS).logits).abs().max()
        moved = (ours(input_ids=IDS).logits - model(family)(input_ids=IDS).logits).abs().max()
    assert float(gap) < 1e-3 * float(moved)


def test_an_adapter_of_another_model_is_refused(tmp_path) -> None:
    lora_delta().save(tmp_path / "adapter", {})
    other = MODELS["llama"](320, seed=5, max_positions=256)
    with pytest.raises(InputError, match="belongs to another model"):
        read_delta(tmp_path / "adapter", other)
    with pytest.raises(InputError, match="belongs to another model"):
        read_delta(tmp_path / "adapter", model("gpt2"))


def test_a_directory_that_is_no_adapter_is_refused(tmp_path) -> None:
    delta = lora_delta()
    delta.save(tmp_path / "adapter", {})
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    with pytest.raises(InputError, match="no baked prompt that can be read"):
        read_delta(tmp_path / "nothing", model())
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="no baked prompt that can be read"):
        read_delta(tmp_path / "adapter", model())
    record = tmp_path / "adapter" / "baked_prompt.json"
    record.write_text(json.dumps([1]))
    with pytest.raises(InputError, match="no baked prompt that can be read"):
        read_delta(tmp_path / "adapter", model())


@pytest.mark.parametrize(
    "content", [None, "{", '{"peft_type": "NONE"}', '{"peft_type": "IA3", "r": 1}']
)
def test_an_adapter_without_its_configuration_is_refused_without_asking_the_hub(
    tmp_path, monkeypatch, content
) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("peft.config.hf_hub_download", download)
    lora_delta().save(tmp_path / "adapter", {})
    file = tmp_path / "adapter" / "adapter_config.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match="no baked prompt that can be read"):
        read_delta(tmp_path / "adapter", model())


def test_modules_that_a_model_has_not_are_refused() -> None:
    settings = LoraSettings(target_modules=("no_such_projection",))
    with pytest.raises(InputError, match=r"no adapter fits .*no_such_projection"):
        add_adapter(model(), lora_config(settings))


def test_the_hash_sees_every_weight() -> None:
    base = model()
    before = weights_sha256(base)
    with torch.no_grad():
        next(base.parameters())[0, 0] += 1e-6
    assert weights_sha256(base) != before
    assert weights_sha256(model()) == before
