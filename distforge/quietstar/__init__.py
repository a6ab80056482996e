"""Step 2: a baked model learns to think before it predicts."""

from distforge.quietstar.step2 import run_step2_rl
from distforge.quietstar.step2_config import Step2Config
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.reports.step2_summary import Step2Summary
from distforge.thinking.model import ThinkingModel

__all__ = [
    "Step2Config",
    "Step2Summary",
    "ThinkingModel",
    "ThoughtTrainer",
    "run_step2_rl",
]
