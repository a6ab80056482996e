"""Phase 3 as a whole: the order of its stages, and what there is of each."""

from distforge.pipeline.config import PipelineConfig
from distforge.pipeline.order import Outcome, StageTime, phase_3, run_pipeline
from distforge.pipeline.stages import Found, Stage

__all__ = [
    "Found",
    "Outcome",
    "PipelineConfig",
    "Stage",
    "StageTime",
    "phase_3",
    "run_pipeline",
]
