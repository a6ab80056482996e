"""The list form of the fused step: one call, many tensors, the update where it is needed."""

from __future__ import annotations

import pytest
import torch

from distforge import ops
from distforge.errors import InputError
from distforge.ops import native, reference

SCALARS = {"alpha": 0.98, "lamb": 2.0, "beta": 0.95}
SIZES = [(5, 123), (0,), (1,), (64, 64), (0, 3), (70_001,)]

IMPLEMENTATIONS = [
    pytest.param(ops.grokfast_momentum_into_, id="dispatched"),
    pytest.param(reference.grokfast_momentum_into_, id="reference"),
]


def tensors(seed: int, sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


def copies(items: list[torch.Tensor]) -> list[torch.Tensor]:
    return [item.clone() for item in items]


def test_this_machine_runs_the_native_operator():
    assert native.why_not_native("grokfast_momentum_into_", tensors(0)) == ""


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("filtered", [True, False])
def test_is_the_single_step_of_each_tensor(step, dtype, nesterov, filtered):
    scalars = SCALARS if filtered else {**SCALARS, "lamb": 0.0}
    grads, emas, momenta = tensors(1), tensors(2), tensors(3)
    wanted_emas, wanted_momenta = copies(emas), copies(momenta)
    updates = [torch.empty(g.shape, dtype=dtype) for g in grads]
    step(grads, emas if filtered else None, momenta, updates, **scalars, nesterov=nesterov)
    for i, grad in enumerate(grads):
        h = wanted_emas[i].double() if filtered else None
        m = wanted_momenta[i].double()
        u = reference.grokfast_momentum_(grad.double(), h, m, **scalars, nesterov=nesterov)
        # Float32 arithmetic on numbers of size about 5, then one rounding to the update's dtype.
        rounding = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
        torch.testing.assert_close(updates[i].double(), u, rtol=rounding, atol=2e-6)
        torch.testing.assert_close(momenta[i].double(), m, rtol=0, atol=2e-6)
        if h is not None:
            torch.testing.assert_close(emas[i].double(), h, rtol=0, atol=2e-6)


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_updates_may_be_slices_of_a_stack_for_newton_schulz(step):
    grads, emas, momenta = (tensors(seed, [(6, 4)] * 3) for seed in (1, 2, 3))
    alone = [
        reference.grokfast_momentum_(g, h.clone(), m.clone(), **SCALARS, nesterov=True)
        for g, h, m in zip(grads, emas, momenta, strict=True)
    ]
    stack = torch.full((5, 6, 4), 7.0)
    step(grads, emas, momenta, list(stack[1:4].unbind()), **SCALARS, nesterov=True)
    torch.testing.assert_close(stack[1:4], torch.stack(alone), rtol=0, atol=2e-6)
    assert (stack[0] == 7).all()
    assert (stack[4] == 7).all()


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
def test_no_tensor_at_all_is_fine(step):
    step([], None, [], [], **SCALARS, nesterov=True)
    step([], [], [], [], **SCALARS, nesterov=True)


def test_no_bit_depends_on_the_number_of_threads():
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            momenta = tensors(3)
            updates = [torch.empty_like(m) for m in momenta]
            ops.grokfast_momentum_into_(
                tensors(1), tensors(2), momenta, updates, **SCALARS, nesterov=True
            )
            results.append(torch.cat([t.flatten() for t in updates + momenta]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("filtered", [True, False])
def test_opcheck(filtered):
    grads, emas, momenta = (tensors(seed, [(3, 4), (5,)]) for seed in (1, 2, 3))
    updates = [torch.zeros(g.shape, dtype=torch.bfloat16) for g in grads]
    arguments = (
        *(grads, emas if filtered else [], momenta, updates),
        *(0.98, 2.0 if filtered else 0.0, 0.95, True),
    )
    torch.library.opcheck(torch.ops.distforge.grokfast_momentum_into_.default, arguments)


BAD_ARGUMENTS = {
    "length": (lambda g, h, m, u: (g, h, m[:1], u), {}, r"momenta has 1 tensors where grads has 2"),
    "no emas": (lambda g, h, m, u: (g, None, m, u), {}, r"emas is None but lamb is 2\.0"),
    "ema shape": (
        lambda g, h, m, u: (g, [h[0], h[1][:3]], m, u),
        {},
        r"emas\[1\] has shape .* where grads\[1\]",
    ),
    "momentum shape": (
        lambda g, h, m, u: (g, h, [m[0].view(4, 3), m[1]], u),
        {},
        r"momenta\[0\] has shape .* where grads\[0\]",
    ),
    "momentum dtype": (
        lambda g, h, m, u: (g, h, [m[0], m[1].double()], u),
        {},
        r"momenta\[1\] has dtype torch\.float64",
    ),
    "update size": (
        lambda g, h, m, u: (g, h, m, [u[0], u[1][:2]]),
        {},
        r"updates\[1\] has 2 elements where grads\[1\] has 5",
    ),
    "update strides": (
        lambda g, h, m, u: (g, h, m, [torch.empty(4, 3).mT, u[1]]),
        {},
        r"updates\[0\] is not contiguous",
    ),
    "update dtypes": (
        lambda g, h, m, u: (g, h, m, [u[0], u[1].bfloat16()]),
        {},
        r"updates\[1\] has dtype torch\.bfloat16 where updates\[0\]",
    ),
    "update device": (
        lambda g, h, m, u: (g, h, m, [u[0], u[1].to("meta")]),
        {},
        r"updates\[1\] has device meta",
    ),
    "aliased": (lambda g, h, m, u: (g, h, m, [u[0], m[1]]), {}, r"share memory"),
    "not a tensor": (lambda g, h, m, u: (g, h, m, [u[0], [0.0]]), {}, r"updates\[1\] is a list"),
    "beta": (lambda g, h, m, u: (g, h, m, u), {"beta": 2.0}, r"beta is 2\.0"),
}


@pytest.mark.parametrize("step", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_and_nothing_is_modified(step, case):
    choose, scalars, message = BAD_ARGUMENTS[case]
    lists = [tensors(seed, [(3, 4), (5,)]) for seed in (1, 2, 3, 4)]
    before = [copies(items) for items in lists]
    with pytest.raises(InputError, match=message):
        step(*choose(*lists), **{**SCALARS, **scalars}, nesterov=True)
    for items, originals in zip(lists, before, strict=True):
        for item, original in zip(items, originals, strict=True):
            assert torch.equal(item, original)


def test_the_registered_operator_guards_itself():
    g, h, m, u = (tensors(seed, [(3, 4), (5,)]) for seed in (1, 2, 3, 4))
    operator = torch.ops.distforge.grokfast_momentum_into_
    for arguments in (
        (g, h, m[:1], u),
        (g, [h[0], h[1][:2]], m, u),
        (g, h, m, [u[0], u[1][:2]]),
        (g, h, m, [u[0], u[1].double()]),
        (g, h, m, [torch.empty(4, 3).mT, u[1]]),
        ([g[0], g[1].double()], h, m, u),
        ([t.double() for t in g], h, m, u),
        (g, h, [m[0].view(4, 3), m[1]], u),
        ([g[0].mT, g[1]], [h[0].mT, h[1]], [m[0].mT, m[1]], u),
        (g, [], m, u),
    ):
        with pytest.raises(RuntimeError, match=r"grad|ema|moment|update"):
            operator(*arguments, 0.9, 0.2, 0.95, True)


def test_the_native_operator_itself_refuses_tensors_that_overlap():
    memory = torch.randn(30)
    grads, emas = ([torch.randn(10)] for _ in range(2))
    arguments = (0.98, 2.0, 0.95, True)
    native_step = torch.ops.distforge.grokfast_momentum_into_
    with pytest.raises(RuntimeError, match="share memory"):
        native_step(grads, emas, [memory[:10]], [memory[9:19]], *arguments)
    before = memory.clone()
    native_step(grads, emas, [memory[:10]], [memory[10:20]], *arguments)  # neighbours are fine
    assert torch.equal(memory != before, torch.arange(30) < 20)
