"""What the operators refuse, reference and native alike; nothing is modified before it.

The native code looks for as much as it relies on (csrc/common/checks.h), without a sentence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distforge.errors import InputError

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_matrices(x: Tensor) -> None:
    """x is a floating-point tensor of at least two dimensions."""
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}: newton_schulz takes a tensor")
    if x.dim() < 2:
        raise InputError(
            f"x has shape {tuple(x.shape)}: newton_schulz takes matrices, shape (..., m, n)"
        )
    if x.dtype not in _FLOATS:
        raise InputError(f"x is {x.dtype}: newton_schulz takes {_names(_FLOATS)}; cast it")


def check_grokfast_momentum(
    grad: Tensor, ema: Tensor | None, momentum: Tensor, alpha: float, lamb: float, beta: float
) -> None:
    """Dtype, shape, device, layout and ranges of ``grokfast_momentum_``'s arguments."""
    check_filter(alpha, lamb, beta)
    buffers = {"grad": grad, "momentum": momentum}
    if ema is not None and has_ema(grad, ema):
        buffers["ema"] = ema
    elif lamb != 0:
        raise InputError(
            f"ema is {'None' if ema is None else 'empty'} but lamb is {lamb}: "
            "give an EMA buffer shaped like grad, or lamb=0"
        )
    for name, tensor in buffers.items():
        _check_like(name, tensor, "grad", grad, ("dtype", "device", "shape"))
    _check_disjoint(buffers)


def has_ema(grad: Tensor, ema: Tensor | None) -> bool:
    """Whether there is an EMA buffer; an empty one beside a gradient with elements is none."""
    return ema is not None and (ema.numel() > 0 or grad.numel() == 0)


def check_grokfast_momentum_into(
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    updates: Sequence[Tensor],
    alpha: float,
    lamb: float,
    beta: float,
) -> None:
    """As for ``grokfast_momentum_``, of each; an update needs only its gradient's element count."""
    check_filter(alpha, lamb, beta)
    lists = {"grads": grads, "momenta": momenta, "updates": updates}
    if emas:
        lists["emas"] = emas
    elif lamb != 0 and len(grads) > 0:
        raise InputError(
            f"emas is {emas!r} but lamb is {lamb}: give an EMA buffer for each gradient, or lamb=0"
        )
    _check_lengths(lists)
    for index, grad in enumerate(grads):
        _check_like(f"grads[{index}]", grad, "grads[0]", grads[0], ("dtype", "device"))
        for name in ("momenta", "emas") if emas else ("momenta",):
            tensor = lists[name][index]
            alike = ("dtype", "device", "shape")
            _check_like(f"{name}[{index}]", tensor, f"grads[{index}]", grad, alike)
        _check_elementwise("updates", index, updates, grad, f"grads[{index}]")
    _check_disjoint(_flattened(lists))


def check_orthogonal_update(
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    lr: float,
    weight_decay: float,
    scale: float,
) -> None:
    """Dtype, element count, device, layout and ranges of ``orthogonal_update_``'s arguments."""
    check_factors(lr, weight_decay, scale)
    lists = {"weights": weights, "updates": updates}
    _check_lengths(lists)
    for index, weight in enumerate(weights):
        _check_like(f"weights[{index}]", weight, "weights[0]", weights[0], ("dtype", "device"))
        _check_elementwise("updates", index, updates, weight, f"weights[{index}]")
    _check_disjoint(_flattened(lists))


def check_small_muon_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    rows: Sequence[int],
    columns: Sequence[int],
) -> None:
    """Dtype, shape, device and layout of ``small_muon_step_``'s tensors, and that each is made of
    whole matrices of its ``rows`` and ``columns``."""
    lists = {"grads": grads, "weights": weights, "momenta": momenta}
    if emas:
        lists["emas"] = emas
    _check_lengths({**lists, "rows": rows, "columns": columns})
    for index, grad in enumerate(grads):
        for name, tensors in lists.items():
            alike = ("dtype", "device", "shape")
            _check_like(f"{name}[{index}]", tensors[index], f"grads[{index}]", grad, alike)
        m, n = rows[index], columns[index]
        if m < 1 or n < 1 or grad.numel() % (m * n):
            raise InputError(
                f"grads[{index}] of shape {tuple(grad.shape)} is not made of {m} x {n} matrices: "
                "give the shape of those that lie one after the other in it"
            )
    _check_disjoint(_flattened(lists))


def check_filter(alpha: float, lamb: float, beta: float) -> None:
    """Ranges of the scalars of ``grokfast_momentum_``."""
    _check_range("alpha", alpha, upper=1.0)
    _check_range("beta", beta, upper=1.0)
    _check_range("lamb", lamb, upper=math.inf)


def check_factors(lr: float, weight_decay: float, scale: float) -> None:
    """Ranges of the scalars of ``orthogonal_update_``."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("scale", scale)):
        _check_range(name, value, upper=math.inf)


def _check_range(name: str, value: float, upper: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= upper):
        bounds = "[0, 1]" if upper == 1.0 else "[0, inf)"
        raise InputError(f"{name} is {value!r}: expected a finite number in {bounds}")


def _check_lengths(lists: Mapping[str, Sequence[object]]) -> None:
    (first, reference), *others = lists.items()
    for name, tensors in others:
        if len(tensors) != len(reference):
            raise InputError(
                f"{name} has {len(tensors)} tensors where {first} has {len(reference)}: "
                "give one for each"
            )


def _check_buffer(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}: expected a tensor")
    if tensor.dtype not in _FLOATS:
        raise InputError(f"{name} is {tensor.dtype}: expected {_names(_FLOATS)}")
    if not tensor.is_contiguous():
        raise InputError(
            f"{name} is not contiguous (strides {tensor.stride()}): pass a contiguous tensor"
        )


def _check_like(
    name: str, tensor: Tensor, other: str, reference: Tensor, attributes: Sequence[str]
) -> None:
    if isinstance(tensor, Tensor) and tensor.dtype in _FLOATS:
        for what in attributes:
            found, wanted = getattr(tensor, what), getattr(reference, what)
            if found != wanted:
                raise InputError(
                    f"{name} has {what} {found} where {other} has {wanted}: make them equal"
                )
    _check_buffer(name, tensor)


def _check_elementwise(
    name: str, index: int, tensors: Sequence[Tensor], reference: Tensor, other: str
) -> None:
    """Any shape with the elements of the reference, on its device; one dtype for the whole list."""
    tensor = tensors[index]
    _check_like(f"{name}[{index}]", tensor, other, reference, ("device",))
    _check_like(f"{name}[{index}]", tensor, f"{name}[0]", tensors[0], ("dtype",))
    if tensor.numel() != reference.numel():
        raise InputError(
            f"{name}[{index}] has {tensor.numel()} elements where {other} has "
            f"{reference.numel()}: make them equal"
        )


def _flattened(lists: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {
        f"{name}[{index}]": tensor
        for name, tensors in lists.items()
        for index, tensor in enumerate(tensors)
    }


def _check_disjoint(buffers: Mapping[str, Tensor]) -> None:
    """No buffer shares memory with another: the step would read what it has just overwritten."""
    # A traced, fake or wrapped tensor has no address to compare.
    if torch.compiler.is_compiling() or not all(_is_plain(t) for t in buffers.values()):
        return
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
        for name, t in buffers.items()
        if t.numel() > 0
    )
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise InputError(f"{name} and {other} share memory: pass separate tensors")


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
