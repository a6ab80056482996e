"""Decay, scale and subtract in one pass: against float64, alone and in lists."""

from __future__ import annotations

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import native, reference

SCALARS = {"lr": 0.02, "weight_decay": 0.1, "scale": 1.5}

IMPLEMENTATIONS = [
    pytest.param(ops.orthogonal_update_, id="dispatched"),
    pytest.param(reference.orthogonal_update_, id="reference"),
]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def oracle(weight, update, *, lr, weight_decay, scale):
    w, o = weight.double(), update.double().reshape(weight.shape)
    return (1 - lr * weight_decay) * w - lr * scale * o


def test_this_machine_runs_the_native_operator():
    assert native.why_not_native("orthogonal_update_", [torch.ones(3)]) == ""


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (5, 123), (3, 17, 9), (70_001,), (0,)])
def test_matches_float64(step, dtype, shape):
    weight, update = randn(*shape), randn(*shape, dtype=dtype, seed=1)
    wanted = oracle(weight, update, **SCALARS)
    before = update.clone()
    assert step([weight], [update], **SCALARS) is None
    # Two roundings of numbers below 4.
    torch.testing.assert_close(weight.double(), wanted, rtol=2e-7, atol=2e-7)
    assert torch.equal(update, before)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_are_rounded_once(step, weight_dtype):
    weight, update = randn(5, 12, dtype=weight_dtype), randn(5, 12, seed=1)
    wanted = oracle(weight, update, **SCALARS)
    step([weight], [update], **SCALARS)
    torch.testing.assert_close(weight, wanted.to(weight_dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_a_list_is_each_tensor_by_itself_and_slices_of_a_stack_will_do(step):
    sizes = [(4, 6), (0,), (24,), (3, 5)]
    weights = [randn(*size, seed=i) for i, size in enumerate(sizes)]
    flat = randn(24 + 24 + 15, dtype=torch.bfloat16, seed=9)
    updates = [flat[:24].view(6, 4), flat[:0], flat[24:48], flat[48:]]
    wanted = [oracle(w, o, **SCALARS) for w, o in zip(weights, updates, strict=True)]
    step(weights, updates, **SCALARS)
    for weight, new in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.double(), new, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_shards_put_together_are_the_whole(step):
    weight, update = randn(7, 9), randn(7, 9, seed=1)
    whole, flat = weight.clone(), weight.flatten().clone()
    step([whole], [update], **SCALARS)
    for piece in (slice(0, 10), slice(10, 41), slice(41, 63)):
        step([flat[piece]], [update.flatten()[piece]], **SCALARS)
    assert torch.equal(flat, whole.flatten())


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_nan_stays_where_it_is_and_no_tensor_is_fine(step):
    weight, update = randn(50), randn(50, seed=1)
    update[13] = float("nan")
    step([weight], [update], **SCALARS)
    assert weight.isnan().nonzero().flatten().tolist() == [13]
    step([], [], **SCALARS)


def test_parameters_are_updated_outside_of_autograd():
    parameter = torch.nn.Parameter(torch.ones(3))
    ops.orthogonal_update_([parameter], [torch.ones(3)], **SCALARS)
    assert parameter.grad_fn is None
    assert parameter.requires_grad
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.998 - 0.03))


def test_opcheck():
    weights, updates = [randn(3, 4), randn(5)], [randn(3, 4, seed=1), randn(5, seed=2)]
    operator = torch.ops.distforge.orthogonal_update_.default
    torch.library.opcheck(operator, (weights, updates, 0.02, 0.1, 1.5))


BAD_ARGUMENTS = {
    "size": (lambda w, o: ([w], [o[:2]]), {}, r"updates\[0\] has 10 elements where weights\[0\]"),
    "strides": (lambda w, o: ([w.mT], [o]), {}, r"weights\[0\] is not contiguous"),
    "integer": (lambda w, o: ([w], [o.int()]), {}, r"updates\[0\] is torch\.int32"),
    "device": (lambda w, o: ([w], [o.to("meta")]), {}, r"updates\[0\] has device meta"),
    "dtypes": (
        lambda w, o: ([w, w.double()], [o, o.clone()]),
        {},
        r"weights\[1\] has dtype torch\.float64",
    ),
    "lengths": (lambda w, o: ([w, o], [o]), {}, r"updates has 1 tensors where weights has"),
    "aliased": (lambda w, o: ([w], [w]), {}, r"(weights|updates)\[0\] and .* share memory"),
    "a list": (lambda w, o: ([w], [o.tolist()]), {}, r"updates\[0\] is a list"),
    "lr": (lambda w, o: ([w], [o]), {"lr": -1.0}, r"lr is -1\.0"),
    "decay": (lambda w, o: ([w], [o]), {"weight_decay": float("nan")}, r"weight_decay is nan"),
    "scale": (lambda w, o: ([w], [o]), {"scale": float("inf")}, r"scale is inf"),
}


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_nothing_is_modified(step, case):
    choose, scalars, message = BAD_ARGUMENTS[case]
    tensors = [randn(6, 5), randn(6, 5, seed=1)]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(InputError, match=message):
        step(*choose(*tensors), **{**SCALARS, **scalars})
    for tensor, original in zip(tensors, before, strict=True):
        assert torch.equal(tensor, original)


def test_the_registered_operator_guards_itself():
    w, o = randn(6, 5), randn(6, 5, seed=1)
    operator = torch.ops.distforge.orthogonal_update_
    for weights, updates in (
        ([w], [o[:2]]),
        ([w], []),
        ([w.double()], [o]),
        ([w.mT], [o.mT]),
        ([w], [o.double()]),
        ([w, w.clone()], [o, o.bfloat16()]),
    ):
        with pytest.raises(RuntimeError, match=r"weights|updates"):
            operator(weights, updates, 0.1, 0.1, 1.0)
    with pytest.raises(RuntimeError, match="share memory"):
        operator([w], [w], 0.1, 0.1, 1.0)
