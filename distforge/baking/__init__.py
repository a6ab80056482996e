"""Step 1: baking seven reasoning strategies into a model."""

from distforge.baking.config import Step1Config
from distforge.baking.publish import Step1Summary
from distforge.baking.step1 import run_step1_baking
from distforge.baking.trainer import PromptBakingTrainer

__all__ = ["PromptBakingTrainer", "Step1Config", "Step1Summary", "run_step1_baking"]
