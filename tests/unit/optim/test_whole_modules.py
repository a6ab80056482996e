"""MuonGrokfast(model): roles from the tree, keywords, and parameters whose shape is gone."""

import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from tests.tiny_models import tiny_gpt2, tiny_llama


def settings(optimizer: MuonGrokfast) -> dict[str, tuple]:
    return {
        name: (group["algorithm"], group.get("layout"), group.get("transposed"))
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_a_module_is_taken_as_it_is():
    chosen = settings(MuonGrokfast(tiny_llama(64), MuonGrokfastConfig.baking()))
    assert chosen["model.layers.0.mlp.up_proj.weight"] == ("muon", "matrix", False)
    assert chosen["model.embed_tokens.weight"][0] == "adamw"


def test_a_weight_stored_the_other_way_is_scaled_by_its_transpose():
    # Square in storage, so that neither names nor shapes tell; the type of the module does.
    optimizer = MuonGrokfast(tiny_gpt2(64))
    assert settings(optimizer)["transformer.h.0.attn.c_proj.weight"] == ("muon", "matrix", True)


def test_a_compiled_module_has_the_same_roles():
    model = tiny_llama(64)
    compiled = settings(MuonGrokfast(torch.compile(model)))
    plain = settings(MuonGrokfast(model))
    assert {name.removeprefix("_orig_mod."): role for name, role in compiled.items()} == plain


def test_keywords_set_hyperparameters_as_torch_names_them():
    optimizer = MuonGrokfast(
        tiny_llama(64), lr=0.3, weight_decay=0.2, betas=(0.5, 0.6), eps=1e-5, adamw_lr=0.1
    )
    muon, adamw = optimizer.param_groups[0], optimizer.param_groups[1]
    assert (muon["algorithm"], muon["lr"], muon["weight_decay"]) == ("muon", 0.3, 0.2)
    assert (adamw["lr"], adamw["betas"], adamw["eps"]) == (0.1, (0.5, 0.6), 1e-5)
    assert (optimizer.config.muon_lr, optimizer.config.adamw_lr) == (0.3, 0.1)


def test_torchs_groups_of_named_parameters_get_roles_and_keep_their_settings():
    model = tiny_llama(64)
    decayed = [(n, p) for n, p in model.named_parameters() if p.ndim > 1]
    others = [(n, p) for n, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "lr": 0.5}]
    optimizer = MuonGrokfast(groups, lr=0.1)
    found = {(g["algorithm"], g["weight_decay"], g["lr"]) for g in optimizer.param_groups}
    assert found == {("muon", 0.3, 0.1), ("adamw", 0.3, 0.1), ("adamw", 0.0, 0.5)}


@pytest.mark.parametrize("source", ["parameters", "groups"])
def test_parameters_without_names_are_refused_with_what_to_do(source):
    model = nn.Linear(4, 6)
    given = model.parameters() if source == "parameters" else [{"params": model.parameters()}]
    with pytest.raises(InputError, match=r"shape \(6, 4\) is not .*: pass the model itself"):
        MuonGrokfast(given)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"learning_rate": 0.1}, "no field 'learning_rate'"),
        ({"lr": -1.0}, "muon_lr is -1.0"),
        ({"lr": torch.ones(2)}, r"lr is a Tensor of shape \(2,\); expected one number"),
    ],
)
def test_bad_keywords_are_refused(keywords, message):
    with pytest.raises(InputError, match=message):
        MuonGrokfast(nn.Linear(4, 4), **keywords)


def partitioned(model: nn.Module) -> nn.Module:
    """As deepspeed.zero.Init leaves a model: empty parameters that remember their shape."""
    for param in model.parameters():
        param.ds_shape = param.shape
        param.data = torch.empty(0)
    return model


def test_the_shape_before_zero_init_decides():
    whole = settings(MuonGrokfast(tiny_gpt2(64)))
    assert settings(MuonGrokfast(partitioned(tiny_gpt2(64)))) == whole
    by_name = settings(MuonGrokfast(partitioned(tiny_gpt2(64)).named_parameters()))
    assert {n: r[0] for n, r in by_name.items()} == {n: r[0] for n, r in whole.items()}


def test_a_parameter_whose_shape_is_gone_is_named():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data = torch.empty(0)
    with pytest.raises(InputError, match=r"parameter 0\.weight of shape \(0,\) is empty"):
        MuonGrokfast(model)


def test_a_flat_parameter_of_fsdp1_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight._fsdp_flattened = True
    with pytest.raises(InputError, match=r"0\.weight of shape \(4, 4\) is flattened.*fully_shard"):
        MuonGrokfast(model)


def test_a_slice_of_megatrons_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.tensor_model_parallel = True
    with pytest.raises(InputError, match=r"0\.weight of shape \(4, 4\) is one rank's slice"):
        MuonGrokfast(model)


def test_a_rate_that_is_no_number_changes_nothing():
    model = nn.Linear(4, 4)
    optimizer = MuonGrokfast(model)
    model(torch.ones(1, 4)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.param_groups[-1]["lr"] = torch.ones(2)
    with pytest.raises(InputError, match="lr of parameter group 1 is a Tensor"):
        optimizer.step()
    assert torch.equal(model.weight, before)
    assert not optimizer.state
