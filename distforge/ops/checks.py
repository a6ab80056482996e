"""Refusals shared by the reference and the native operators; nothing is modified before them."""

from __future__ import annotations

import itertools
import math

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
    _check_range("alpha", alpha, upper=1.0)
    _check_range("beta", beta, upper=1.0)
    _check_range("lamb", lamb, upper=math.inf)
    buffers = {"grad": grad, "momentum": momentum}
    if ema is not None and has_ema(grad, ema):
        buffers["ema"] = ema
    elif lamb != 0:
        raise InputError(
            f"ema is {'None' if ema is None else 'empty'} but lamb is {lamb}: "
            "give an EMA buffer shaped like grad, or lamb=0"
        )
    for name, tensor in buffers.items():
        _check_buffer(name, tensor, grad)
    _check_disjoint(buffers)


def has_ema(grad: Tensor, ema: Tensor | None) -> bool:
    """Whether there is an EMA buffer; an empty one beside a gradient with elements is none."""
    return ema is not None and (ema.numel() > 0 or grad.numel() == 0)


def _check_range(name: str, value: float, upper: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= upper):
        bounds = "[0, 1]" if upper == 1.0 else "[0, inf)"
        raise InputError(f"{name} is {value!r}: expected a finite number in {bounds}")


def _check_buffer(name: str, tensor: Tensor, grad: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}: expected a tensor")
    if tensor.dtype not in _FLOATS:
        raise InputError(f"{name} is {tensor.dtype}: expected {_names(_FLOATS)}")
    for what in ("dtype", "device", "shape"):
        found, wanted = getattr(tensor, what), getattr(grad, what)
        if found != wanted:
            raise InputError(f"{name} has {what} {found} where grad has {wanted}: make them equal")
    if not tensor.is_contiguous():
        raise InputError(
            f"{name} is not contiguous (strides {tensor.stride()}): pass a contiguous tensor"
        )


def _check_disjoint(buffers: dict[str, Tensor]) -> None:
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
