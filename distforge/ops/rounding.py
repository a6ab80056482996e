"""Stochastic rounding: small updates of 16-bit weights move them in the mean."""

from __future__ import annotations

import torch
from torch import Tensor

from distforge.errors import InputError

# Bits of a float32 mantissa (23) that the 16-bit dtype has no room for.
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}

# Elements that are rounded at a time, so that noise and copies stay small beside the tensor.
_PORTION = 1 << 20


@torch.no_grad()
def round_stochastically_(target: Tensor, source: Tensor, generator: torch.Generator) -> None:
    """target <- source, rounded up or down at random so that its mean is source.

    To nearest, an update below half the spacing of 16-bit numbers (1/256 of the weight in bfloat16)
    is lost, however often it is repeated (Gupta et al. 2015, arXiv 1502.02551).

    Args:
        target: bfloat16 or float16, overwritten.
        source: float32, of the same shape and device; not modified. What target can hold exactly,
            infinities and NaN included, stays as it is.
        generator: of that device; the same state gives the same roundings.

    Raises InputError for other dtypes; nothing has been modified then.
    """
    if target.dtype not in _DROPPED_BITS or source.dtype is not torch.float32:
        raise InputError(
            f"{source.dtype} cannot be rounded to {target.dtype} at random: "
            "give float32 to round to bfloat16 or float16"
        )
    pieces = [(target, source)]
    if target.is_contiguous() and source.is_contiguous():
        flat = (tensor.view(-1).split(_PORTION) for tensor in (target, source))
        pieces = list(zip(*flat, strict=True))
    for piece in pieces:
        _round_(*piece, generator)


def _round_(target: Tensor, source: Tensor, generator: torch.Generator) -> None:
    dropped = _DROPPED_BITS[target.dtype]
    noise = torch.randint(
        1 << dropped, source.shape, dtype=torch.int32, device=source.device, generator=generator
    )
    # Sign and magnitude: what is added to the low bits is carried to the next larger magnitude.
    bits = source.contiguous().view(torch.int32).add(noise).bitwise_and_(-1 << dropped)
    rounded = bits.view(torch.float32)
    if target.dtype is torch.float16:
        # Below 2^-14 float16 numbers are evenly spaced, coarser than a mantissa of 10 bits.
        even = (source * 2.0**24 + noise * 2.0**-dropped).floor() * 2.0**-24
        rounded = torch.where(source.abs() < 2.0**-14, even, rounded)
    target.copy_(torch.where(source.isfinite(), rounded, source))


def generator_for(device: torch.device, *numbers: int) -> torch.Generator:
    """A random generator that depends on ``numbers`` alone: nothing to save, nothing to share."""
    return torch.Generator(device).manual_seed(hash(numbers) & (2**63 - 1))
