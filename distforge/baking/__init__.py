"""Step 1: baking seven reasoning strategies into a model."""

from distforge.baking.config import Step1Config
from distforge.baking.prompt.baked import BakedPrompt, BakedSequence, Pursuit
from distforge.baking.prompt.prompt_baker import PromptBaker
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.step1 import run_step1_baking
from distforge.baking.supervised.trainer import PromptBakingTrainer
from distforge.reports.step1_summary import Step1Summary

__all__ = [
    "BakedPrompt",
    "BakedSequence",
    "PromptBaker",
    "PromptBakingConfig",
    "PromptBakingTrainer",
    "Pursuit",
    "Step1Config",
    "Step1Summary",
    "run_step1_baking",
]
