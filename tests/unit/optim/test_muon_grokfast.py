import copy

import numpy as np
import pytest
import torch
from torch import nn

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from distforge.optim.muon_step import scratch_bytes
from tests.newton_schulz_calls import newton_schulz_calls
from tests.unit.optim.oracle import MuonOracle, orthogonalize

# float32 rounding of the gradient filter and of five Newton-Schulz steps, in the weights.
WEIGHT_RTOL = 1e-5

# float32 on every processor, for bounds that only it keeps.
CONFIG = MuonGrokfastConfig(
    muon_lr=0.02, adamw_lr=0.01, grokfast_lambda=0.2, weight_decay=0.1, ns_dtype="float32"
)


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return nn.Parameter(torch.randn(*shape, generator=generator).to(dtype))


def gradient(param: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7919 * seed + param.numel())
    return torch.randn(param.shape, generator=generator).to(param.dtype)


def run(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = gradient(param, step)
        optimizer.step()


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    difference = actual.detach().double().numpy() - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


@pytest.mark.parametrize("scale", ["spectral", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("lamb", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40), (33, 7), (40, 28)])
def test_several_steps_match_the_float64_oracle(shape, lamb, nesterov, scale):
    weight = parameter(*shape)
    oracle = MuonOracle(
        weight.detach().numpy(),
        lr=0.02,
        alpha=0.9,
        lamb=lamb,
        beta=0.95,
        nesterov=nesterov,
        scale=scale,
        weight_decay=0.1,
    )
    config = CONFIG.replace(
        grokfast_alpha=0.9, grokfast_lambda=lamb, nesterov=nesterov, scale=scale
    )
    optimizer = MuonGrokfast([("layer.weight", weight)], config)
    for step in range(6):
        weight.grad = gradient(weight, step)
        oracle.step(weight.grad.numpy())
        optimizer.step()
    assert relative_error(weight, oracle.weight) <= WEIGHT_RTOL


def test_a_constant_gradient_is_amplified_by_one_plus_lambda():
    weight = parameter(8, 12)
    steady = gradient(weight, 0)
    config = CONFIG.replace(grokfast_lambda=2.0, grokfast_alpha=0.9, momentum=0.5)
    optimizer = MuonGrokfast([("w", weight)], config)
    for _ in range(60):
        weight.grad = steady.clone()
        optimizer.step()
    gain = optimizer.state[weight]["exp_avg"] / steady
    torch.testing.assert_close(gain, torch.full_like(gain, 3.0), rtol=1e-5, atol=0)


def test_an_alternating_gradient_is_not_amplified():
    # The inverted filter g + lambda (g - h) would pass this at 1 + lambda.
    weight = parameter(8, 12)
    base = gradient(weight, 0)
    config = CONFIG.replace(grokfast_lambda=2.0, grokfast_alpha=0.98, momentum=0.0, nesterov=False)
    optimizer = MuonGrokfast([("w", weight)], config)
    for step in range(400):
        weight.grad = base if step % 2 else -base
        optimizer.step()
    gain = (optimizer.state[weight]["exp_avg"] / base).abs()
    assert gain.max() < 1.05


def test_each_matrix_is_orthogonalised_exactly_once_and_same_shapes_in_one_call():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(5)), nn.Linear(32, 48))
    with newton_schulz_calls() as calls:
        run(MuonGrokfast(model.named_parameters(), CONFIG), 3)
    assert sorted(call.shape for call in calls) == sorted([(5, 32, 32), (1, 48, 32)] * 3)


def test_large_stacks_are_cut_without_losing_a_matrix():
    whole = [parameter(30, 30, seed=i) for i in range(5)]
    cut = copy.deepcopy(whole)
    per_element = scratch_bytes(torch.float32)
    two = CONFIG.replace(bucket_cap_mb=2.5 * 900 * per_element / 2**20)
    with newton_schulz_calls() as calls:
        run(MuonGrokfast([(f"w{i}", p) for i, p in enumerate(whole)], CONFIG), 1)
        run(MuonGrokfast([(f"w{i}", p) for i, p in enumerate(cut)], two), 1)
    assert [call.shape[0] for call in calls] == [5, 2, 2, 1]
    for expected, actual in zip(whole, cut, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_no_parameter_ever_carries_the_attribute_deepspeed_looks_for():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    run(MuonGrokfast(model.named_parameters(), CONFIG), 1)
    assert not any(hasattr(param, "use_muon") for param in model.parameters())


def test_lambda_zero_holds_no_ema_buffer():
    matrix, vector = parameter(8, 8), parameter(8)
    config = CONFIG.replace(grokfast_lambda=0.0, grokfast_on_adamw=True)
    optimizer = MuonGrokfast([("w", matrix), ("b", vector)], config)
    run(optimizer, 2)
    assert set(optimizer.state[matrix]) == {"step", "exp_avg"}
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}


def test_lambda_set_to_zero_during_a_run_drops_the_buffer():
    matrix = parameter(8, 8)
    optimizer = MuonGrokfast([("w", matrix)], CONFIG)
    run(optimizer, 1)
    optimizer.param_groups[0]["grokfast_lambda"] = 0.0
    run(optimizer, 1)
    assert "exp_avg_sq" not in optimizer.state[matrix]


def test_state_names_and_step_counts_are_those_of_universal_checkpoints():
    matrix, vector = parameter(8, 8), parameter(8)
    optimizer = MuonGrokfast([("w", matrix), ("b", vector)], CONFIG)
    run(optimizer, 3)
    for param in (matrix, vector):
        assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[param]["step"].item() == 3


def test_a_step_tensor_shared_by_all_parameters_is_not_incremented_once_per_parameter():
    params = [parameter(8, 8, seed=i) for i in range(3)]
    optimizer = MuonGrokfast([(f"w{i}", p) for i, p in enumerate(params)], CONFIG)
    run(optimizer, 1)
    shared = torch.tensor(5.0)
    for param in params:
        optimizer.state[param]["step"] = shared
    run(optimizer, 1)
    assert [optimizer.state[param]["step"].item() for param in params] == [6.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_adamw", [True, False])
def test_a_saved_run_resumes_bit_by_bit(dtype, on_adamw, tmp_path):
    config = CONFIG.replace(grokfast_on_adamw=on_adamw)

    def fresh():
        params = [parameter(12, 8, dtype=dtype), parameter(8, dtype=dtype)]
        return params, MuonGrokfast([("w", params[0]), ("b", params[1])], config)

    straight, optimizer = fresh()
    run(optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.005
    torch.save([optimizer.state_dict(), *straight], tmp_path / "saved.pt")
    run(optimizer, 3, first=3)

    resumed, optimizer = fresh()
    state, *weights = torch.load(tmp_path / "saved.pt", weights_only=True)
    with torch.no_grad():
        for param, weight in zip(resumed, weights, strict=True):
            param.copy_(weight)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.005
    run(optimizer, 3, first=3)
    for expected, actual in zip(straight, resumed, strict=True):
        assert torch.equal(expected, actual)


def test_two_optimizers_loaded_from_one_state_do_not_share_buffers():
    weight = parameter(8, 8)
    first = MuonGrokfast([("w", weight)], CONFIG)
    run(first, 1)
    second = MuonGrokfast([("w", copy.deepcopy(weight))], CONFIG)
    second.load_state_dict(first.state_dict())
    before = first.state[weight]["exp_avg"].clone()
    run(second, 2)
    assert torch.equal(first.state[weight]["exp_avg"], before)


def test_loading_a_state_of_other_algorithms_is_refused():
    muon = MuonGrokfast([("w", parameter(8, 8))], CONFIG)
    adamw = MuonGrokfast([("embed.weight", parameter(8, 8))], CONFIG)
    with pytest.raises(InputError, match="algorithm = 'adamw'"):
        muon.load_state_dict(adamw.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_averaged_in_float32(dtype):
    # h moves by 0.02 of a difference of 1%: far below bf16's resolution of 0.4%.
    weight = parameter(4, 4, dtype=dtype)
    optimizer = MuonGrokfast([("w", weight)], CONFIG.replace(grokfast_alpha=0.98))
    values = [1.0] + [1.0078125] * 50
    expected = values[0]
    for value in values:
        weight.grad = torch.full_like(weight, value)
        optimizer.step()
        expected = 0.98 * expected + 0.02 * value
    ema = optimizer.state[weight]["exp_avg_sq"]
    assert ema.dtype == torch.float32
    assert optimizer.state[weight]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(ema, torch.full_like(ema, expected), rtol=1e-6, atol=0)


def test_ns_dtype_float16_keeps_momentum_too_small_for_it():
    weight = nn.Parameter(torch.zeros(16, 24))
    grad = gradient(weight, 1) * 1e-12
    config = CONFIG.replace(ns_dtype="float16", muon_lr=1.0, weight_decay=0.0)
    optimizer = MuonGrokfast([("w", weight)], config)
    weight.grad = grad
    optimizer.step()
    expected = -orthogonalize(grad.double().numpy())
    # float16 resolves 1e-3; five steps amplify the rounding of small singular values.
    assert relative_error(weight, expected) < 2e-2


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e30])
def test_zero_tiny_and_huge_gradients(size):
    weight = nn.Parameter(torch.zeros(16, 24))
    grad = gradient(weight, 1) * size
    config = CONFIG.replace(muon_lr=1.0, weight_decay=0.0)
    optimizer = MuonGrokfast([("w", weight)], config)
    weight.grad = grad
    optimizer.step()
    expected = -orthogonalize(gradient(weight, 1).double().numpy()) if size else np.zeros((16, 24))
    np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_gradient_names_its_parameter_and_changes_nothing(bad):
    matrix, vector = parameter(8, 8), parameter(8)
    optimizer = MuonGrokfast([("fine", matrix), ("broken", vector)], CONFIG)
    run(optimizer, 1)
    weights = [matrix.detach().clone(), vector.detach().clone()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    vector.grad[3] = bad
    with pytest.raises(FloatingPointError, match="parameter broken is not finite"):
        optimizer.step()
    assert torch.equal(matrix, weights[0])
    assert torch.equal(vector, weights[1])
    for key, saved in state.items():
        for name, value in saved.items():
            assert torch.equal(optimizer.state_dict()["state"][key][name], value)


def test_gradients_whose_sum_overflows_are_finite():
    weight = nn.Parameter(torch.zeros(16, 24))
    optimizer = MuonGrokfast([("w", weight)], CONFIG.replace(grokfast_lambda=0.0))
    weight.grad = torch.full((16, 24), 1e38) * torch.rand(16, 24)
    assert weight.grad.sum().isinf()
    optimizer.step()
    assert weight.isfinite().all()
    assert weight.any()


def test_parameters_without_a_gradient_are_skipped():
    moved, still = parameter(8, 8), parameter(8, 8, seed=1)
    before = still.detach().clone()
    optimizer = MuonGrokfast([("moved", moved), ("still", still)], CONFIG)
    moved.grad = gradient(moved, 0)
    optimizer.step()
    assert torch.equal(still, before)
    assert still not in optimizer.state


def test_the_group_learning_rate_and_decay_drive_the_step():
    weight = parameter(8, 8)
    before = weight.detach().clone()
    optimizer = MuonGrokfast([("w", weight)], CONFIG.replace(weight_decay=0.5))
    weight.grad = torch.zeros_like(weight)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5))


def test_torch_schedulers_drive_every_group():
    optimizer = MuonGrokfast([("w", parameter(8, 8)), ("b", parameter(8))], CONFIG)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


def test_closure_is_evaluated_once_with_gradients_on():
    weight = parameter(8, 8)
    optimizer = MuonGrokfast([("w", weight)], CONFIG)
    evaluations = []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        evaluations.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == evaluations[0]
    assert len(evaluations) == 1


def test_ready_groups_keep_their_own_hyperparameters():
    matrix, table = parameter(8, 8), parameter(8, 8, seed=1)
    optimizer = MuonGrokfast(
        [
            {"params": [matrix], "algorithm": "muon", "lr": 0.5, "ns_steps": 3},
            {"params": [table], "algorithm": "adamw", "betas": (0.5, 0.6)},
        ],
        CONFIG,
    )
    run(optimizer, 1)
    muon, adamw = optimizer.param_groups
    assert (muon["lr"], muon["ns_steps"]) == (0.5, 3)
    assert (adamw["lr"], adamw["betas"]) == (0.01, (0.5, 0.6))
    moment = 0.5 * gradient(table, 0)
    torch.testing.assert_close(optimizer.state[table]["exp_avg"], moment)


def test_layouts_agree_with_their_matrices_done_one_by_one():
    fused = parameter(24, 8)
    stored_transposed = nn.Parameter(fused.detach().T.clone())
    experts = nn.Parameter(fused.detach().view(3, 8, 8).clone())
    separate = [nn.Parameter(block.clone()) for block in fused.detach().chunk(3)]
    optimizer = MuonGrokfast(
        [
            {"params": separate, "algorithm": "muon"},
            {"params": [fused, stored_transposed], "algorithm": "muon", "layout": "fused_qkv"},
            {"params": [experts], "algorithm": "muon"},
        ],
        CONFIG,
    )
    for step in range(3):
        fused.grad = gradient(fused, step)
        stored_transposed.grad = fused.grad.T
        experts.grad = fused.grad.view(3, 8, 8)
        for param, block in zip(separate, fused.grad.chunk(3), strict=True):
            param.grad = block
        optimizer.step()
    # A transposed square matrix is iterated from its other side: same value, other rounding.
    expected = torch.cat([param.detach() for param in separate])
    torch.testing.assert_close(fused.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(experts.detach().view(24, 8), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stored_transposed.detach().T, expected, rtol=1e-4, atol=1e-5)


def test_convolution_is_one_matrix_of_its_filters():
    conv = parameter(8, 3, 2, 2)
    flat = nn.Parameter(conv.detach().reshape(8, 12).clone())
    optimizer = MuonGrokfast([("conv.weight", conv), ("linear.weight", flat)], CONFIG)
    for step in range(2):
        conv.grad = gradient(conv, step)
        flat.grad = conv.grad.reshape(8, 12)
        optimizer.step()
    torch.testing.assert_close(conv.detach().reshape(8, 12), flat.detach(), rtol=1e-5, atol=1e-6)


def test_transposed_storage_swaps_the_spectral_scale():
    plain = parameter(32, 8)
    stored = nn.Parameter(plain.detach().T.clone())
    groups = [
        {"params": [plain], "algorithm": "muon"},
        {"params": [stored], "algorithm": "muon", "transposed": True},
    ]
    optimizer = MuonGrokfast(groups, CONFIG)
    plain.grad = gradient(plain, 0)
    stored.grad = plain.grad.T
    optimizer.step()
    torch.testing.assert_close(stored.detach().T, plain.detach(), rtol=1e-5, atol=1e-6)


def test_a_parameter_in_two_groups_is_refused():
    weight = parameter(8, 8)
    groups = [
        {"params": [("layer.w", weight)], "algorithm": "muon"},
        {"params": [("again.w", weight)], "algorithm": "adamw"},
    ]
    with pytest.raises(InputError, match=r"parameter again\.w of shape \(8, 8\) .* twice"):
        MuonGrokfast(groups, CONFIG)


@pytest.mark.parametrize(
    "group,message",
    [
        ({"algorithm": "sgd"}, "'sgd'; expected one of"),
        ({}, r"Parameter of shape \(8, 8\) is not a \(name, parameter\) pair: pass the model"),
        ({"algorithm": "muon", "params": [nn.Parameter(torch.ones(4))]}, r"\(4,\) cannot be seen"),
        ({"algorithm": "muon", "layout": "fused_qkv"}, r"\(8, 8\) cannot be seen"),
        ({"algorithm": "muon", "layout": "banded"}, "'banded'; expected one of"),
        ({"algorithm": "muon", "lr": -1.0}, r"-1\.0; expected at least 0"),
    ],
)
def test_bad_groups_are_refused(group, message):
    with pytest.raises(InputError, match=message):
        MuonGrokfast([{"params": [parameter(8, 8)], **group}], CONFIG)


def test_a_matrix_flattened_by_a_wrapper_is_refused_at_the_step():
    optimizer = MuonGrokfast([("w", parameter(8, 8))], CONFIG)
    flat = parameter(64)
    flat.grad = gradient(flat, 0)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(InputError, match="whole matrices"):
        optimizer.step()


def test_sparse_gradients_are_refused():
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = MuonGrokfast([("embed.weight", table.weight)], CONFIG)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match=r"embed\.weight has a sparse gradient"):
        optimizer.step()


def test_only_muon_or_only_adamw_parameters_are_fine():
    matrix, vector = parameter(8, 8), parameter(8)
    for named in ([("w", matrix)], [("b", vector)]):
        before = named[0][1].detach().clone()
        run(MuonGrokfast(named, CONFIG), 1)
        assert not torch.equal(named[0][1], before)


def test_a_copied_optimizer_is_whole():
    optimizer = MuonGrokfast([("w", parameter(8, 8))], CONFIG)
    run(optimizer, 1)
    twin = copy.deepcopy(optimizer)
    run(optimizer, 2, first=1)
    run(twin, 2, first=1)
    twin.add_param_group({"params": [("b", parameter(8))], "algorithm": "adamw"})
    assert torch.equal(twin.param_groups[0]["params"][0], optimizer.param_groups[0]["params"][0])


def test_a_small_network_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    head = nn.Linear(32, 1)
    whole = nn.ModuleDict({"body": model, "head": head})
    inputs = torch.randn(256, 10)
    targets = (inputs[:, :2].prod(dim=1, keepdim=True) > 0).float() * 2 - 1
    optimizer = MuonGrokfast(
        whole.named_parameters(), CONFIG.replace(muon_lr=0.02, weight_decay=0.0)
    )
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (head(model(inputs)) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The product of two inputs is invisible to a linear fit, which stays near 1.
    assert losses[0] > 0.8
    assert losses[-1] < 0.2


def test_a_group_of_all_kinds_is_each_parameter_by_itself():
    def weights():
        rows = parameter(24, 8, seed=1)
        return {
            "small": parameter(12, 20),
            "stack": parameter(3, 12, 20),
            "large": parameter(30, 40),
            "strided": nn.Parameter(parameter(20, 12).detach().mT),
            "half": parameter(12, 20, dtype=torch.bfloat16),
            "next small": nn.Parameter(rows.detach()),
        }

    together = weights()
    config = CONFIG.replace(stochastic_rounding=False)
    run(MuonGrokfast([{"params": list(together.values()), "algorithm": "muon"}], config), 4)
    for name, param in weights().items():
        run(MuonGrokfast([(name, param)], config), 4)
        torch.testing.assert_close(param, together[name], rtol=1e-6, atol=1e-7, msg=name)


def test_small_matrices_are_updated_as_those_in_batches():
    in_one_call, in_batches = ([parameter(8, 12, seed=i) for i in range(3)] for _ in range(2))
    optimizers = [MuonGrokfast([(str(i), p) for i, p in enumerate(params)], CONFIG)
                  for params in (in_one_call, in_batches)]  # fmt: skip
    for step in range(4):
        run(optimizers[0], 1, first=step)
        optimizers[1].start_sampling()
        with newton_schulz_calls() as calls:
            run(optimizers[1], 1, first=step)
        assert [call.shape for call in calls] == [(3, 8, 12)]
        assert optimizers[1].sampled().matrices == 3
    for one, other in zip(in_one_call, in_batches, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
