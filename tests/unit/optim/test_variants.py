"""NorMuon, cautious decay, heads by themselves and scales as functions, each with its oracle."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from tests.tiny_models import tiny_gpt2, tiny_llama
from tests.unit.optim.oracle import MuonOracle, orthogonalize

RTOL = 1e-5
CONFIG = MuonGrokfastConfig(muon_lr=0.02, weight_decay=0.1, ns_dtype="float32")


def oracle_of(weight: np.ndarray) -> MuonOracle:
    return MuonOracle(
        weight,
        lr=0.02,
        alpha=0.98,
        lamb=0.2,
        beta=0.95,
        nesterov=True,
        scale="spectral",
        weight_decay=0.1,
    )


def run(weight: np.ndarray, steps: int = 4, **group):
    """The weight after some steps in a group of its own, and the gradients it had."""
    param = nn.Parameter(torch.from_numpy(weight).float())
    optimizer = MuonGrokfast([{"params": [param], "algorithm": "muon", **group}], CONFIG)
    draw = np.random.default_rng(1)
    grads = [draw.standard_normal(weight.shape) for _ in range(steps)]
    for grad in grads:
        param.grad = torch.from_numpy(grad).float()
        optimizer.step()
    return param.detach().double().numpy(), grads


def start(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return float(np.linalg.norm(ours - theirs)) <= RTOL * float(np.linalg.norm(theirs))


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("transposed", [False, True])
def test_normuon_evens_out_the_neurons_and_keeps_the_norm(shape, transposed):
    ours, grads = run(start(*shape), neuron_beta=0.9, transposed=transposed)
    oracle, moment = oracle_of(start(*shape)), 0.0
    rows, columns = shape[::-1] if transposed else shape
    for grad in grads:
        direction = orthogonalize(oracle.update(grad))
        outputs = direction.T if transposed else direction
        moment = 0.9 * moment + 0.1 * (outputs**2).mean(axis=1, keepdims=True)
        even = outputs / np.sqrt(moment)
        even *= np.linalg.norm(outputs) / np.linalg.norm(even)
        step = 0.02 * max(1.0, rows / columns) ** 0.5 * (even.T if transposed else even)
        oracle.weight = (1 - 0.02 * 0.1) * oracle.weight - step
    assert close(ours, oracle.weight)


def test_cautious_decay_acts_where_the_update_goes_the_same_way():
    ours, grads = run(start(12, 8), cautious_weight_decay=True, weight_decay=5.0)
    oracle = oracle_of(start(12, 8))
    for grad in grads:
        step = orthogonalize(oracle.update(grad)) * (12 / 8) ** 0.5
        decayed = np.where(step * oracle.weight >= 0, 0.02 * 5.0 * oracle.weight, 0.0)
        oracle.weight = oracle.weight - decayed - 0.02 * step
    assert close(ours, oracle.weight)


def test_cautious_decay_of_adamw():
    param = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    group = {"params": [param], "algorithm": "adamw", "weight_decay": 0.5, "lr": 0.1}
    optimizer = MuonGrokfast([group], CONFIG.replace(cautious_weight_decay=True))
    param.grad = torch.tensor([1.0, 1.0, -1.0, -1.0])
    optimizer.step()
    # Adam's first step is lr times the sign; decay joins where it points the same way.
    expected = torch.tensor([1 - 0.1 - 0.05, -1 - 0.1, 1 + 0.1, -1 + 0.1 + 0.05])
    torch.testing.assert_close(param.detach(), expected)


@pytest.mark.parametrize("layout", ["rows:4", "columns:4"])
def test_heads_are_orthogonalised_one_by_one(layout):
    weight = start(12, 8) if layout == "rows:4" else start(8, 12)
    ours, grads = run(weight, layout=layout, transposed=layout != "rows:4")
    turn = (lambda x: x) if layout == "rows:4" else (lambda x: x.T)
    blocks = [oracle_of(block) for block in np.split(turn(weight), 3)]
    for grad in grads:
        for oracle, part in zip(blocks, np.split(turn(grad), 3), strict=True):
            oracle.step(part)
    assert close(turn(ours), np.concatenate([oracle.weight for oracle in blocks]))


def test_the_model_tells_its_heads_grouped_and_fused_alike():
    def layouts(model: nn.Module) -> dict[str, str]:
        optimizer = MuonGrokfast(model, split_heads=True)
        return {
            name: group["layout"]
            for group in optimizer.param_groups
            if group["algorithm"] == "muon"
            for name in group["param_names"]
        }

    llama = layouts(tiny_llama(64))
    assert {llama[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"} == {"rows:8"}
    assert llama["model.layers.0.self_attn.o_proj.weight"] == "matrix"
    gpt2 = tiny_gpt2(64)
    size = gpt2.config.n_embd // gpt2.config.n_head
    assert layouts(gpt2)["transformer.h.0.attn.c_attn.weight"] == f"columns:{size}"

    class Grouped(nn.Module):  # four query heads of two groups, in one matrix
        def __init__(self):
            super().__init__()
            self.qkv_proj = nn.Linear(16, (4 + 2 * 2) * 4)
            self.config = type("Config", (), {"num_attention_heads": 4, "head_dim": 4})()

    assert layouts(Grouped()) == {"qkv_proj.weight": "rows:4"}
    torchs = layouts(nn.Sequential(nn.MultiheadAttention(16, 4)))
    assert torchs["0.in_proj_weight"] == "rows:4"


def test_heads_that_nothing_tells_are_refused():
    with pytest.raises(InputError, match="split_heads found no query"):
        MuonGrokfast(nn.Linear(8, 8), split_heads=True)


def test_a_scale_may_be_a_function_and_is_not_saved():
    weight = start(12, 8)
    ours, grads = run(weight, steps=1, scale=lambda m, n: m / n)
    oracle = oracle_of(weight)
    direction = orthogonalize(oracle.update(grads[0]))
    assert close(ours, (1 - 0.02 * 0.1) * weight - 0.02 * (12 / 8) * direction)
    model = nn.Linear(8, 8)
    optimizer = MuonGrokfast(model, scale=lambda m, n: m / n)
    state = optimizer.state_dict()
    assert "scale" not in state["param_groups"][0]
    optimizer.load_state_dict(state)
    assert callable(optimizer.param_groups[0]["scale"])


def test_a_mixture_of_experts_is_trained_expert_by_expert():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 12}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 20}
    torch.manual_seed(0)
    config = Qwen2MoeConfig(vocab_size=32, decoder_sparse_step=1, **sizes, **heads, **experts)
    model = Qwen2MoeForCausalLM(config)
    optimizer = MuonGrokfast(model, CONFIG)
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    stacks = {name: p for name, p in model.named_parameters() if ".experts." in name}
    assert {p.ndim for p in stacks.values()} == {3}
    oracles = {
        name: [oracle_of(matrix) for matrix in p.detach().double().numpy()]
        for name, p in stacks.items()
    }
    optimizer.step()
    for name, param in stacks.items():
        for oracle, ours, grad in zip(oracles[name], param.detach(), param.grad, strict=True):
            assert close(ours.double().numpy(), oracle.step(grad.numpy())), name
    algorithms = {
        name: group["algorithm"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert algorithms["model.layers.0.mlp.gate.weight"] == "adamw"
    assert algorithms["model.layers.0.mlp.shared_expert.up_proj.weight"] == "muon"
