"""What one optimizer step measured."""

from __future__ import annotations

from dataclasses import dataclass

from distforge.optim.metrics import OptimizerMetrics


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks.

    ``loss``: mean in nats per target token; cross-entropy, unless the engine was given another
    loss. ``grad_norm``: global norm before clipping. ``lr``: of the first parameter group.
    ``token_accuracy``: fraction of targets that the argmax hits, teacher-forced.
    ``clipped_heads``: attention heads that QK-Clip scaled down.
    ``optimizer``: measurements of MuonGrokfast, on the steps that are sampled.
    """

    loss: float
    grad_norm: float
    lr: float
    token_accuracy: float
    clipped_heads: int
    optimizer: OptimizerMetrics | None = None
