"""Benchmarks are loaded once and asked of any model that can answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from distforge.activity import doing
from distforge.evaluation.benchmarks.answering import Answerer, Judged
from distforge.evaluation.benchmarks.arc import ARC
from distforge.evaluation.benchmarks.config import BenchmarksConfig
from distforge.evaluation.benchmarks.gsm8k import GSM8K
from distforge.evaluation.intervals import Interval, proportion
from distforge.training.distributed import World


class Benchmark(Protocol):
    """Questions, and how their answers are judged; ``headline`` is the measure to quote."""

    name: str
    headline: str

    @property
    def questions(self) -> Sequence[object]:
        """All that are asked."""
        ...

    def judge(self, answerer: Answerer, mine: Sequence[int]) -> list[Judged]:
        """Ask the chosen questions."""
        ...


@dataclass(frozen=True)
class BenchmarkScores:
    """What a model answered of a benchmark's ``count`` questions.

    measures: fraction answered rightly with its 95% interval, by measure. too_long: questions that
    the model's context has no room for; they count as wrong. judged: each question, in order.
    """

    name: str
    headline: str
    count: int
    too_long: int
    measures: dict[str, Interval]
    judged: tuple[Judged, ...] = ()

    @property
    def accuracy(self) -> float:
        """By the headline measure."""
        return self.measures[self.headline].mean


def load_benchmarks(config: BenchmarksConfig) -> list[Benchmark]:
    """Those that the configuration names.

    Raises:
        InputError: a path that holds no such benchmark.
    """
    loaded: list[Benchmark] = []
    if config.gsm8k:
        loaded.append(GSM8K(config.gsm8k, config.limit, config.gsm8k_shots))
    if config.arc:
        loaded.append(ARC(config.arc, config.limit, config.arc_shots))
    return loaded


def measure_benchmarks(
    benchmarks: Sequence[Benchmark], answerer: Answerer, world: World
) -> list[BenchmarkScores]:
    """Ask all questions; collective, ranks share them."""
    return [_measure(benchmark, answerer, world) for benchmark in benchmarks]


def _measure(benchmark: Benchmark, answerer: Answerer, world: World) -> BenchmarkScores:
    count = len(benchmark.questions)
    with doing(f"asking {count:,} questions of {benchmark.name}"):
        mine = benchmark.judge(answerer, range(count)[world.rank :: world.size])
    judged: list[Judged] = [Judged("", "", None)] * count
    for rank, share in enumerate(world.gather_objects([asdict(one) for one in mine])):
        judged[rank :: world.size] = [Judged(**one) for one in share]
    answered = [one.right for one in judged if one.asked is not None]
    names = list(answered[0]) if answered else [benchmark.headline]
    return BenchmarkScores(
        name=benchmark.name,
        headline=benchmark.headline,
        count=len(judged),
        too_long=len(judged) - len(answered),
        measures={
            name: proportion(sum(one[name] for one in answered), len(judged)) for name in names
        },
        judged=tuple(judged),
    )
