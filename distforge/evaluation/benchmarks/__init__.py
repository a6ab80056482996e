"""Public benchmarks, read from local files: GSM8K and ARC, asked as lm-evaluation-harness does."""

from distforge.evaluation.benchmarks.answering import Answerer, Judged
from distforge.evaluation.benchmarks.config import BenchmarksConfig
from distforge.evaluation.benchmarks.measuring import (
    Benchmark,
    BenchmarkScores,
    load_benchmarks,
    measure_benchmarks,
)

__all__ = [
    "Answerer",
    "Benchmark",
    "BenchmarkScores",
    "BenchmarksConfig",
    "Judged",
    "load_benchmarks",
    "measure_benchmarks",
]
