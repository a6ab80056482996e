import pytest
import torch
from torch import nn

from distforge.optim import MuonGrokfast, MuonGrokfastConfig


def tensors(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (5, 17, 64)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_bitwise_equal_to_torch_without_the_filter(weight_decay):
    ours, theirs = tensors(0), tensors(0)
    config = MuonGrokfastConfig(
        adamw_lr=0.03, adamw_betas=(0.8, 0.97), adamw_eps=1e-6, weight_decay=weight_decay
    )
    group = {"params": ours, "algorithm": "adamw"}
    optimizer = MuonGrokfast([group], config)
    reference = torch.optim.AdamW(
        theirs, lr=0.03, betas=(0.8, 0.97), eps=1e-6, weight_decay=weight_decay, fused=True
    )
    for step in range(10):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            its.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(optimizer.state[ours[0]][key], reference.state[theirs[0]][key])


def test_the_filter_in_front_is_the_grokfast_average():
    (ours, _, _), (theirs, _, _) = tensors(1), tensors(1)
    config = MuonGrokfastConfig(
        adamw_lr=0.03, grokfast_on_adamw=True, grokfast_lambda=1.5, grokfast_alpha=0.7
    )
    optimizer = MuonGrokfast([("bias", ours)], config)
    reference = torch.optim.AdamW(
        [theirs], lr=0.03, betas=config.adamw_betas, eps=config.adamw_eps, weight_decay=0.0
    )
    average = None
    for step in range(8):
        grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        average = grad if average is None else 0.7 * average + 0.3 * grad
        ours.grad, theirs.grad = grad, grad + 1.5 * average
        optimizer.step()
        reference.step()
    torch.testing.assert_close(optimizer.state[ours]["grokfast_ema"], average)
    torch.testing.assert_close(ours, theirs)


def test_bf16_parameters_keep_float32_moments():
    param = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    wide = nn.Parameter(torch.ones(6))
    config = MuonGrokfastConfig(adamw_lr=0.05, stochastic_rounding=False)
    optimizer = MuonGrokfast([("bias", param)], config)
    reference = torch.optim.AdamW([wide], lr=0.05, betas=config.adamw_betas, weight_decay=0.0)
    param.grad = torch.linspace(-1, 1, 6).to(torch.bfloat16)
    wide.grad = param.grad.float()
    optimizer.step()
    reference.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[param][key], reference.state[wide][key])
    assert torch.equal(param, wide.detach().to(torch.bfloat16))


def test_a_parameter_with_strides_of_its_own_is_updated_as_any_other():
    memory = torch.zeros(8, 6)
    strided, plain = nn.Parameter(memory[::2].t()), nn.Parameter(torch.zeros(6, 4))
    for param in (strided, plain):
        optimizer = MuonGrokfast(
            [{"params": [param], "algorithm": "adamw"}], MuonGrokfastConfig(adamw_lr=0.05)
        )
        for step in range(3):
            param.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(strided, plain)
    assert not memory[1::2].any()
