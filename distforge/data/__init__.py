"""Reasoning data: strategies, verified tasks, files, and what a model trains on."""

from distforge.data.dataset import BatchPlan, ReasoningDataset, collate
from distforge.data.examples import Examples, at, data_note, of_split
from distforge.data.files import dataset_sha256, read_examples, write_examples, write_splits
from distforge.data.generate import DataConfig, load_data, make_examples
from distforge.data.schema import Example, Message
from distforge.data.strategies import (
    STRATEGIES,
    STRATEGY_PROMPTS,
    THINKING_TOKENS,
    USAGE_TARGETS,
    USAGE_TYPES,
)
from distforge.data.verify import is_correct, judge_answer, verify_trace

__all__ = [
    "STRATEGIES",
    "STRATEGY_PROMPTS",
    "THINKING_TOKENS",
    "USAGE_TARGETS",
    "USAGE_TYPES",
    "BatchPlan",
    "DataConfig",
    "Example",
    "Examples",
    "Message",
    "ReasoningDataset",
    "at",
    "collate",
    "data_note",
    "dataset_sha256",
    "is_correct",
    "judge_answer",
    "load_data",
    "make_examples",
    "of_split",
    "read_examples",
    "verify_trace",
    "write_examples",
    "write_splits",
]
