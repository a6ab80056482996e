"""The operators in plain torch: the measure of the native ones, and what runs without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distforge.errors import InputError
from distforge.ops.checks import (
    check_factors,
    check_filter,
    check_grokfast_momentum,
    check_grokfast_momentum_into,
    check_matrices,
    check_orthogonal_update,
    check_small_muon_step,
    has_ema,
)

Triple = tuple[float, float, float]


def _with_safety(schedule: tuple[Triple, ...], factor: float) -> tuple[Triple, ...]:
    # p(x / factor): singular values that rounding lifted above 1 stay where p converges.
    # The last triple is the fixed point of the schedule and keeps exactly 1.
    scaled = [(a / factor, b / factor**3, c / factor**5) for a, b, c in schedule[:-1]]
    return (*scaled, schedule[-1])


COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". As steep at 0
    # as a band about 1 allows: it lifts small singular values fast and does not converge to 1.
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # Amsel, Persson, Musco and Gower 2025, "The Polar Express: Optimal Matrix Sign Methods and
    # Their Application to the Muon Algorithm", arXiv 2505.16932, implementation 1: minimax-optimal
    # in each step for singular values in [1e-3, 1], safety factor 1.01. Converges to 1.
    "polar_express": _with_safety(
        (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
            (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            (1.875, -1.25, 0.375),
        ),
        1.01,
    ),
}


def coefficient_schedule(coefficients: str, steps: int) -> tuple[Triple, ...]:
    """The (a, b, c) of each step of x ← a·x + b·(xxᵀ)x + c·(xxᵀ)²x; a set that is too short repeats
    its last triple.

    Raises:
        InputError: an unknown set, or ``steps`` not a positive integer.
    """
    if coefficients not in COEFFICIENTS:
        known = ", ".join(sorted(COEFFICIENTS))
        raise InputError(f"coefficients is {coefficients!r}: expected one of {known}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps is {steps!r}: expected an integer of at least 1")
    schedule = COEFFICIENTS[coefficients]
    return schedule[:steps] + schedule[-1:] * (steps - len(schedule))


def flat_schedule(coefficients: str, steps: int) -> list[float]:
    """``coefficient_schedule`` as the native operator takes it: a, b, c of each step in a row."""
    return [number for step in coefficient_schedule(coefficients, steps) for number in step]


def newton_schulz(x: Tensor, coefficients: str = "quintic", steps: int = 5) -> Tensor:
    """Orthogonalise each matrix of x: singular values are driven towards 1, singular vectors kept.

    Newton–Schulz iteration of degree 5 on x/‖x‖_F (Jordan et al. 2024, "Muon"); matrices with more
    rows than columns are transposed for the iteration, so that the product is the smaller one.

    Args:
        x: matrices, shape (..., m, n), float32, float64, bfloat16 or float16; not modified.
            Any scale: x and s·x give the same result, and a zero matrix gives zeros.
        coefficients: a key of ``COEFFICIENTS``.
        steps: iterations, at least 1.

    Returns:
        A new tensor of x's shape and dtype. The products are computed in x's dtype; the native
        kernels may keep more (float32 sums, or all of it where the CPU does not multiply bfloat16),
        never less. A matrix with a NaN or an infinity becomes NaN; the others of the batch are not
        affected.

    Raises:
        InputError: fewer than two dimensions, not floating point, unknown set, bad ``steps``.
    """
    check_matrices(x)
    schedule = coefficient_schedule(coefficients, steps)
    if x.numel() == 0:
        return x.clone()
    tall = x.size(-2) > x.size(-1)
    y = _normalised(x.mT if tall else x)
    for a, b, c in schedule:
        gram = y @ y.mT
        polynomial = b * gram + c * (gram @ gram)
        y = a * y + polynomial @ y
    return (y.mT if tall else y).contiguous()


def _normalised(x: Tensor) -> Tensor:
    """x/‖x‖_F of each matrix, in x's dtype, for every scale that the dtype holds."""
    # Scaled by the largest element first: the squares of 1e-20 or 1e20 are not float32 numbers.
    wide = x if x.dtype == torch.float64 else x.float()
    largest = wide.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = wide / torch.where(largest == 0, 1.0, largest)
    norm = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True)
    return (scaled / torch.where(norm == 0, 1.0, norm)).to(x.dtype)


@torch.no_grad()
def grokfast_momentum_(
    grad: Tensor,
    ema: Tensor | None,
    momentum: Tensor,
    *,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> Tensor:
    """Grokfast filter and momentum in one pass; ``ema`` and ``momentum`` are updated in place.

    With g the gradient, h the EMA (Lee et al. 2024, "Grokfast", arXiv 2405.20233, algorithm 2) and
    m the momentum::

        h ← α·h + (1−α)·g        ĝ = g + λ·h
        m ← β·m + (1−β)·ĝ        u = (1−β)·ĝ + β·m  if nesterov else  m

    A constant gradient comes out 1+λ times as large: slow gradients are amplified.

    Args:
        grad: g, any shape, contiguous; not modified.
        ema: h, like grad. With λ = 0 it may be None or empty; a buffer that is given is updated.
            The caller starts it as a copy of the first gradient.
        momentum: m, like grad.
        alpha: decay of the EMA, in [0, 1].
        lamb: λ, weight of the EMA, ≥ 0.
        beta: decay of the momentum, in [0, 1].
        nesterov: whether u looks one step ahead.

    Returns:
        u, a new tensor like grad.

    Raises:
        InputError: an argument of another dtype, device, shape or layout than grad's, tensors that
            share memory, or a scalar out of range; nothing has been modified then.
    """
    check_grokfast_momentum(grad, ema, momentum, alpha, lamb, beta)
    filtered = grad
    if ema is not None and has_ema(grad, ema):
        ema.mul_(alpha).add_(grad, alpha=1 - alpha)
        filtered = torch.add(grad, ema, alpha=lamb)
    momentum.mul_(beta).add_(filtered, alpha=1 - beta)
    if not nesterov:
        return momentum.clone()
    return torch.add(filtered * (1 - beta), momentum, alpha=beta)


@torch.no_grad()
def grokfast_momentum_into_(
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> None:
    """``grokfast_momentum_`` of many tensors in one call, u written to where it is needed.

    Saves the allocation of u, and with ``updates`` in the dtype of Newton–Schulz the cast and the
    stacking too: an update may be a slice of a (batch, m, n) tensor.

    Args:
        grads: g of each tensor, contiguous, of one dtype and device; not modified.
        emas: h of each, like its gradient; None or empty for no filter (λ = 0).
        momenta: m of each, like its gradient.
        updates: u of each, overwritten: contiguous, as many elements as the gradient in any shape,
            one dtype for all (rounded to it from the gradients' dtype).
        alpha, lamb, beta, nesterov: as in ``grokfast_momentum_``.

    Raises:
        InputError: as ``grokfast_momentum_``, or lists of different lengths; nothing has been
            modified then.
    """
    check_grokfast_momentum_into(grads, emas, momenta, updates, alpha, lamb, beta)
    for index, grad in enumerate(grads):
        ema = emas[index] if emas else None
        momentum = momenta[index]
        u = grokfast_momentum_(
            grad, ema, momentum, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov
        )
        updates[index].copy_(u.view(updates[index].shape))


@torch.no_grad()
def orthogonal_update_(
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    scale: float,
) -> None:
    """Decoupled weight decay and the orthogonal update, in place: W ← (1 − lr·wd)·W − lr·s·O.

    Elementwise, hence right for shards of matrices too, and for many of them in one call
    (Jordan et al. 2024, "Muon", with the decay of Loshchilov and Hutter 2019, arXiv 1711.05101).

    Args:
        weights: W of each tensor, contiguous, of one dtype and device; usually the float32 masters.
            Computed in float32 at least and rounded once.
        updates: O of each, contiguous, as many elements as its weight in any shape, one dtype for
            all: what ``newton_schulz`` returned, or a slice of it.
        lr: learning rate, ≥ 0.
        weight_decay: wd, ≥ 0.
        scale: s, ≥ 0, of the shape of the whole matrix.

    Raises:
        InputError: a tensor of the wrong type, device, size or layout, tensors that share memory,
            lists of different lengths, or a scalar out of range; nothing has been modified then.
    """
    check_orthogonal_update(weights, updates, lr, weight_decay, scale)
    for weight, update in zip(weights, updates, strict=True):
        wide = torch.promote_types(weight.dtype, torch.float32)
        o = update.view(weight.shape).to(wide)
        weight.copy_(torch.add(weight.to(wide) * (1 - lr * weight_decay), o, alpha=-lr * scale))


@torch.no_grad()
def small_muon_step_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    momenta: Sequence[Tensor],
    *,
    rows: Sequence[int],
    columns: Sequence[int],
    scales: Sequence[float],
    coefficients: str,
    steps: int,
    lr: float,
    weight_decay: float,
    alpha: float,
    lamb: float,
    beta: float,
    nesterov: bool,
) -> None:
    """The whole step of small matrices: ``grokfast_momentum_``, ``newton_schulz`` and
    ``orthogonal_update_`` of each, in one call, which for many of them costs less than the calls.

    Args:
        weights: W of each tensor, a matrix or several one after the other; contiguous, all of one
            dtype and device; updated in place.
        grads, emas, momenta: of each, like its weight; as ``grokfast_momentum_into_`` takes them.
        rows, columns: m and n of each tensor's matrices.
        scales: s of each.
        coefficients, steps: as in ``newton_schulz``.
        lr, weight_decay: as in ``orthogonal_update_``.
        alpha, lamb, beta, nesterov: as in ``grokfast_momentum_``.

    Raises:
        InputError: as those do, or a tensor that is not made of such matrices; nothing has been
            modified then.
    """
    check_filter(alpha, lamb, beta)
    check_factors(lr, weight_decay, max(scales, default=0.0))
    check_small_muon_step(weights, grads, emas, momenta, rows, columns)
    updates = [torch.empty_like(grad) for grad in grads]
    grokfast_momentum_into_(
        grads, emas, momenta, updates, alpha=alpha, lamb=lamb, beta=beta, nesterov=nesterov
    )
    for weight, update, m, n, scale in zip(weights, updates, rows, columns, scales, strict=True):
        orthogonal = newton_schulz(update.view(-1, m, n), coefficients, steps)
        orthogonal_update_([weight], [orthogonal], lr=lr, weight_decay=weight_decay, scale=scale)
