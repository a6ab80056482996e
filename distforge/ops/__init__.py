"""The operators under the optimizer; torch is all they need.

``distforge.ops.reference`` has the same functions in plain torch. ``backend()`` tells which
implementation runs and why, ``build_info()`` how the native one was built, ``check_kernels()``
whether it computes on a device what the reference does. The environment's DISTFORGE_KERNELS says
whether kernels are used (``auto``, ``native``, ``reference``).
"""

from distforge.ops.dispatch import (
    grokfast_momentum_,
    grokfast_momentum_into_,
    newton_schulz,
    orthogonal_update_,
    small_muon_step_,
)
from distforge.ops.native import Backend, backend, build_info, check_kernels, why_not_native
from distforge.ops.reference import COEFFICIENTS, coefficient_schedule
from distforge.ops.rounding import round_stochastically_

__all__ = [
    "COEFFICIENTS",
    "Backend",
    "backend",
    "build_info",
    "check_kernels",
    "coefficient_schedule",
    "grokfast_momentum_",
    "grokfast_momentum_into_",
    "newton_schulz",
    "orthogonal_update_",
    "round_stochastically_",
    "small_muon_step_",
    "why_not_native",
]
