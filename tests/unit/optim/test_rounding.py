"""Stochastic rounding: right in the mean, exact where it can be, the same for the same seed."""

import copy

import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.ops import round_stochastically_
from distforge.ops.rounding import generator_for
from distforge.optim import MuonGrokfast, MuonGrokfastConfig

CPU = torch.device("cpu")
DRAWS = 20_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1.0003, -0.1, 3e-6, -(2.0**-20) * 1.3, 300.7])
def test_the_mean_is_the_value_and_only_its_two_neighbours_are_drawn(dtype, value):
    source = torch.full((DRAWS,), value)
    target = torch.empty(DRAWS, dtype=dtype)
    round_stochastically_(target, source, generator_for(CPU, 1))
    drawn = target.double().unique()
    exact = source[0].double()
    nearest = source[0].to(dtype)
    others = (
        [torch.nextafter(nearest, torch.tensor(sign * torch.inf, dtype=dtype)) for sign in (1, -1)]
        if dtype is torch.bfloat16
        else []
    )
    assert len(drawn) == 2
    assert drawn.min() <= exact <= drawn.max()
    assert nearest.double() in drawn
    assert not others or any(other.double() in drawn for other in others)
    spacing = float(drawn.max() - drawn.min())
    # Five standard deviations of the mean of so many draws.
    assert abs(float(target.double().mean() - exact)) <= 5 * 0.5 * spacing / DRAWS**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_dtype_holds_stays_as_it_is(dtype):
    held = torch.tensor([0.0, 1.0, -0.375, 2.0**-14, 2.0**-20, torch.inf, -torch.inf, torch.nan])
    target = torch.empty(len(held), dtype=dtype)
    round_stochastically_(target, held, generator_for(CPU, 2))
    torch.testing.assert_close(target.float(), held, rtol=0, atol=0, equal_nan=True)


def test_other_dtypes_are_refused():
    with pytest.raises(InputError, match=r"cannot be rounded to torch\.float32"):
        round_stochastically_(torch.zeros(2), torch.zeros(2), generator_for(CPU, 3))


def moved(dtype: torch.dtype, **changes) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """Fifty steps at the preset's rate from weights of 1, with a gradient that stays."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((96, 64), (4096,))]
    grads = [torch.randn(p.shape, generator=generator).to(dtype) for p in params]
    config = MuonGrokfastConfig.baking().replace(ns_dtype="float32", weight_decay=0.0, **changes)
    optimizer = MuonGrokfast([("w", params[0]), ("b", params[1])], config)
    for _ in range(50):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return params, [optimizer.state[p]["exp_avg"] for p in params]


def test_bfloat16_weights_follow_float32_masters_at_the_presets_rates():
    wide, _ = moved(torch.float32)
    narrow, momenta = moved(torch.bfloat16)
    for master, param, momentum in zip(wide, narrow, momenta, strict=True):
        assert momentum.dtype is torch.float32
        way, ours = master.detach() - 1, param.detach().float() - 1
        assert way.abs().max() < 2**-7  # below the spacing of bfloat16 above 1
        # Every element goes its way in the mean: the projection on the masters' way.
        assert float((ours * way).sum() / way.square().sum()) == pytest.approx(1.0, abs=0.2)


def test_to_nearest_they_do_not_move_at_all():
    narrow, _ = moved(torch.bfloat16, stochastic_rounding=False)
    assert all(torch.equal(param, torch.ones_like(param)) for param in narrow)


def test_the_seed_decides_and_a_resumed_run_rounds_alike():
    (one, _), (_, _) = moved(torch.bfloat16)
    (same, _), (_, _) = moved(torch.bfloat16)
    (other, _), (_, _) = moved(torch.bfloat16, seed=1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def fitted(dtype: torch.dtype, **changes) -> float:
    """The loss of a small network on a teacher's answers, trained from one start."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    net = copy.deepcopy(teacher)
    with torch.no_grad():
        for param in net.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)
    net.to(dtype)
    optimizer = MuonGrokfast(net, lr=3e-4, weight_decay=0.0, ns_dtype="float32", **changes)
    inputs = torch.randn(256, 8)
    for _ in range(150):
        optimizer.zero_grad()
        (net(inputs.to(dtype)).float() - teacher(inputs)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return float((net.float()(inputs) - teacher(inputs)).square().mean())


def test_a_loss_goes_down_as_with_masters():
    masters = fitted(torch.float32)
    rounded = [fitted(torch.bfloat16, seed=seed) for seed in range(3)]
    still = fitted(torch.bfloat16, stochastic_rounding=False)
    assert all(abs(loss - masters) < 0.25 * (still - masters) for loss in rounded)
