import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.optim import MuonGrokfastConfig, split_parameters
from tests.tiny_models import tiny_gpt2, tiny_llama

CONFIG = MuonGrokfastConfig.baking()


def algorithms(groups) -> dict[str, str]:
    return {name: group["algorithm"] for group in groups for name, _ in group["params"]}


def group_of(groups, name: str) -> dict:
    return next(g for g in groups if name in [other for other, _ in g["params"]])


LLAMA_BLOCK_MATRICES = {
    f"model.layers.{layer}.{name}.weight"
    for layer in range(2)
    for name in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("as_names", [True, False])
def test_llama_gives_muon_its_block_matrices_and_nothing_else(tied, as_names):
    model = tiny_llama(64, tied=tied)
    groups = split_parameters(model.named_parameters() if as_names else model, CONFIG)
    chosen = algorithms(groups)
    assert {name for name, algorithm in chosen.items() if algorithm == "muon"} == (
        LLAMA_BLOCK_MATRICES
    )
    everything = [param for group in groups for _, param in group["params"]]
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}
    assert len(everything) == len(list(model.parameters()))


def test_gpt2_splits_its_fused_projection_and_knows_transposed_storage():
    groups = split_parameters(tiny_gpt2(64), CONFIG)
    chosen = algorithms(groups)
    muon = {name for name, algorithm in chosen.items() if algorithm == "muon"}
    assert muon == {
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert group_of(groups, "transformer.h.0.attn.c_attn.weight")["layout"] == "fused_qkv"
    assert group_of(groups, "transformer.h.0.mlp.c_fc.weight")["transposed"] is True
    assert group_of(groups, "transformer.h.0.mlp.c_fc.weight")["layout"] == "matrix"
    assert group_of(groups, "transformer.wpe.weight")["algorithm"] == "adamw"


def test_weight_decay_is_for_matrices_only():
    groups = split_parameters(tiny_gpt2(64), CONFIG)
    for group in groups:
        is_matrix = {param.ndim >= 2 for _, param in group["params"]}
        assert len(is_matrix) == 1
        assert group["weight_decay"] == (CONFIG.weight_decay if is_matrix.pop() else 0.0)


@pytest.mark.parametrize(
    "name,shape,expected",
    [
        ("blocks.0.linear.weight", (8, 4), "muon"),
        ("blocks.0.attention.output.dense.weight", (8, 8), "muon"),
        ("blocks.0.attn.multihead_proj.weight", (8, 8), "muon"),
        ("experts.gate_up_proj", (3, 8, 4), "muon"),
        ("features.conv1.weight", (8, 3, 5, 5), "muon"),
        ("blocks.0.linear.bias", (8,), "adamw"),
        ("norm.weight", (8,), "adamw"),
        ("temperature", (), "adamw"),
        ("gate.weight", (1, 8), "adamw"),
        ("wte.weight", (8, 4), "adamw"),
        ("model.embed_tokens.weight", (8, 4), "adamw"),
        ("embeddings.position_embeddings.weight", (8, 4), "adamw"),
        ("lm_head.weight", (8, 4), "adamw"),
        ("mixing_head.0.weight", (8, 4), "adamw"),
        ("head.weight", (8, 4), "adamw"),
        ("embed_out.weight", (8, 4), "adamw"),
        ("output.weight", (8, 4), "adamw"),
        ("score.weight", (8, 4), "adamw"),
        ("module._orig_mod.output.weight", (8, 4), "adamw"),
        ("_orig_mod.layers.0.up_proj.weight", (8, 4), "muon"),
        ("layers.0.mixer.A_log", (8, 4), "adamw"),
        ("layers.0.mixer.x_proj.weight", (8, 4), "muon"),
        ("layers.0.mixer.conv1d.weight", (8, 1, 4), "adamw"),
    ],
)
def test_names_and_shapes_decide_without_a_model(name, shape, expected):
    groups = split_parameters([(name, nn.Parameter(torch.zeros(shape)))], CONFIG)
    assert algorithms(groups) == {name: expected}


@pytest.mark.parametrize(
    "name,shape,layout",
    [
        ("h.0.attn.c_attn.weight", (8, 24), "fused_qkv"),
        ("layers.0.qkv_proj.weight", (24, 8), "fused_qkv"),
        ("attn.in_proj_weight", (24, 8), "fused_qkv"),
        ("layers.0.qkv_proj.weight", (16, 8), "matrix"),
        ("attention.query_key_value.weight", (24, 8), "matrix"),
        ("mlp.up_proj.weight", (24, 8), "matrix"),
        ("conv.weight", (8, 4, 3), "conv"),
        ("experts.down_proj", (8, 4, 3), "matrix"),
    ],
)
def test_layouts_by_name_and_shape(name, shape, layout):
    (group,) = split_parameters([(name, nn.Parameter(torch.zeros(shape)))], CONFIG)
    assert (group["algorithm"], group["layout"]) == ("muon", layout)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_a_router_is_what_stands_beside_experts(prefix):
    shapes = {
        "layers.0.mlp.experts.down_proj": (4, 8, 16),
        "layers.0.mlp.gate.weight": (4, 8),
        "layers.1.ffn.router.layer.weight": (4, 8),
        "layers.1.ffn.experts.0.up_proj.weight": (16, 8),
        "layers.1.ffn.experts.0.gate.weight": (16, 8),
        "layers.2.mlp.gate.weight": (16, 8),
    }
    pairs = [(prefix + name, nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    chosen = algorithms(split_parameters(pairs, CONFIG))
    assert {name.removeprefix(prefix) for name, a in chosen.items() if a == "adamw"} == {
        "layers.0.mlp.gate.weight",
        "layers.1.ffn.router.layer.weight",
    }


@pytest.mark.parametrize("compiled", [False, True])
def test_a_head_is_known_by_its_place_and_shape_whatever_its_name(compiled):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(16, 8)
            self.blocks = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8)])
            self.to_words = nn.Linear(8, 16)

    model = torch.compile(Model()) if compiled else Model()
    chosen = algorithms(split_parameters(model, CONFIG))
    muon = {name.removeprefix("_orig_mod.") for name, a in chosen.items() if a == "muon"}
    assert muon == {"blocks.0.weight", "blocks.1.weight"}


@pytest.mark.parametrize("as_names", [True, False])
def test_gpt2s_way_of_storing_is_told_by_names_too(as_names):
    model = tiny_gpt2(64)
    groups = split_parameters(model.named_parameters() if as_names else model, CONFIG)
    for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj"):
        assert group_of(groups, f"transformer.h.1.{name}.weight")["transposed"] is True


def test_module_types_overrule_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.lookup = nn.Embedding(16, 8)
            self.mixer = nn.Conv1d(8, 8, 3)
            self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
            self.linear = nn.Linear(8, 8)

    groups = split_parameters(Odd(), CONFIG)
    chosen = algorithms(groups)
    assert chosen["lookup.weight"] == "adamw"
    assert chosen["depthwise.weight"] == "adamw"
    assert chosen["linear.weight"] == chosen["mixer.weight"] == "muon"
    assert group_of(groups, "mixer.weight")["layout"] == "conv"


@pytest.mark.parametrize("as_names", [True, False])
def test_a_weight_tied_to_a_table_appears_once_and_is_no_hidden_matrix(as_names):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(8, 16, bias=False)
            self.embed = nn.Embedding(16, 8)
            self.decoder.weight = self.embed.weight

    model = Tied()
    source = model.named_parameters(remove_duplicate=False) if as_names else model
    groups = split_parameters(source, CONFIG)
    assert [(g["algorithm"], len(g["params"])) for g in groups] == [("adamw", 1)]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    chosen = algorithms(split_parameters(model, CONFIG))
    assert set(chosen) == {"1.weight", "1.bias"}
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        split_parameters(model, CONFIG)


def test_patterns_overrule_the_choice():
    model = nn.ModuleDict({"router": nn.Linear(8, 4), "head": nn.Linear(8, 4)})
    config = CONFIG.replace(adamw_patterns=("router.*",), muon_patterns=("head.weight",))
    chosen = algorithms(split_parameters(model, config))
    assert chosen["router.weight"] == "adamw"
    assert chosen["head.weight"] == "muon"


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"adamw_patterns": ("routr.*",)}, "'routr.*', which matches no trainable parameter"),
        ({"muon_patterns": ("0.bias",)}, "'0.bias' of shape .* Muon trains matrices"),
        ({"muon_patterns": ("0.*",), "adamw_patterns": ("*.weight",)}, "muon_patterns and adamw"),
    ],
)
def test_bad_patterns_are_refused(changes, message):
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(InputError, match=message):
        split_parameters(model, CONFIG.replace(**changes))


def test_parameters_without_names_are_refused():
    with pytest.raises(InputError, match=r"Parameter of shape \(4, 4\) is not a \(name, par"):
        split_parameters(nn.Linear(4, 4).parameters(), CONFIG)
