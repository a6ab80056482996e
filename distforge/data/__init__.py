"""Reasoning data: strategies, verified tasks, files, and what a model trains on."""

from distforge.data.dataset import BatchPlan, ReasoningDataset, collate
from distforge.data.files import dataset_sha256, read_examples, write_examples, write_splits
from distforge.data.generate import DataConfig, load_data, make_examples
from distforge.data.schema import Example
from distforge.data.strategies import (
    STRATEGIES,
    STRATEGY_PROMPTS,
    THINKING_TOKENS,
    USAGE_TARGETS,
    USAGE_TYPES,
)
from distforge.data.verify import is_correct, verify_trace

__all__ = [
    "STRATEGIES",
    "STRATEGY_PROMPTS",
    "THINKING_TOKENS",
    "USAGE_TARGETS",
    "USAGE_TYPES",
    "BatchPlan",
    "DataConfig",
    "Example",
    "ReasoningDataset",
    "collate",
    "dataset_sha256",
    "is_correct",
    "load_data",
    "make_examples",
    "read_examples",
    "verify_trace",
    "write_examples",
    "write_splits",
]
