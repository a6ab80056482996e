"""``distforge data make|check|show``."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distforge.data import (
    STRATEGIES,
    DataConfig,
    Example,
    dataset_sha256,
    load_data,
    make_examples,
    read_examples,
    verify_trace,
    write_examples,
)
from distforge.data.generate import find_leaks
from distforge.data.tasks import TraceError
from distforge.errors import InputError


@dataclass(frozen=True)
class MakeConfig:
    """Make a dataset: ``num_examples`` verified examples from ``seed``, a tenth held out.

    difficulties: in equal shares, of 1 to 4; traces at 4 are as long as at 3, numbers larger.
    output: directory for train and heldout files; it must not hold a dataset already.
    format: jsonl or parquet.
    """

    output: Path
    num_examples: int = 20_000
    seed: int = 0
    difficulties: tuple[int, ...] = DataConfig.difficulties
    format: str = "jsonl"


@dataclass(frozen=True)
class CheckConfig:
    """Check a dataset: every trace verified, no question twice, no held-out problem in training.

    path: a directory with train.jsonl and heldout.jsonl, or one JSONL or Parquet file.
    """

    path: Path


@dataclass(frozen=True)
class ShowConfig:
    """Print examples of a dataset; without ``path``, of one made on the spot.

    count: how many of each strategy; strategy: only this one.
    """

    path: Path | None = None
    strategy: str = ""
    count: int = 1


def make(config: MakeConfig) -> int:
    """Write the two splits and say what is in them."""
    if config.format not in ("jsonl", "parquet"):
        raise InputError(f"format is {config.format!r}; expected 'jsonl' or 'parquet'")
    data = DataConfig(
        num_examples=config.num_examples, seed=config.seed, difficulties=config.difficulties
    )
    paths = {s: config.output / f"{s}.{config.format}" for s in ("train", "heldout")}
    for path in paths.values():
        if path.exists():
            raise InputError(f"{path} exists; give another --output or remove it")
    began = time.monotonic()
    examples = load_data(data)
    for split, path in paths.items():
        write_examples([e for e in examples if e.split == split], path)
    console = Console()
    console.print(_contents(examples))
    console.print(
        f"{len(examples)} examples, every trace verified, in {time.monotonic() - began:.1f} s; "
        f"sha256 {dataset_sha256(examples)[:16]}; written to {config.output}"
    )
    return 0


def check(config: CheckConfig) -> int:
    """Verify every row; `InputError` names the first that fails."""
    examples = read_examples(config.path)
    for example in examples:
        try:
            verify_trace(example)
        except TraceError as error:
            raise InputError(f"{config.path}: example {example.id}: {error}") from error
    repeated = [q for q, count in Counter(e.question for e in examples).items() if count > 1]
    if repeated:
        raise InputError(f"{config.path}: {len(repeated)} questions occur twice: {repeated[0]!r}")
    leaks = find_leaks(examples)
    if leaks:
        raise InputError(
            f"{config.path}: {len(leaks)} held-out problems are in training: {leaks[0]!r}"
        )
    console = Console()
    console.print(_contents(examples))
    console.print(f"{len(examples)} examples: traces verified, no repeats, no held-out leaks")
    return 0


def show(config: ShowConfig) -> int:
    """Print question, reasoning (a line a tag) and answer."""
    if config.strategy and config.strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {config.strategy!r}; expected one of {STRATEGIES}")
    examples = read_examples(config.path) if config.path else make_examples(700, 0)
    console = Console()
    for strategy in (config.strategy,) if config.strategy else STRATEGIES:
        for example in [e for e in examples if e.strategy == strategy][: config.count]:
            console.rule(f"{strategy} · {example.task} · {example.split}", align="left")
            reasoning = example.reasoning.replace("<", "\n<").strip()
            console.print(
                f"Question: {example.question}\n{reasoning}\nAnswer: {example.answer}\n",
                markup=False,
                highlight=False,
            )
    return 0


def _contents(examples: list[Example]) -> Table:
    counts = Counter((e.strategy, e.task, e.split) for e in examples)
    table = Table("strategy", "task", "train", "held out")
    for strategy, task in sorted({(s, t) for s, t, _ in counts}):
        train, heldout = (counts[strategy, task, split] for split in ("train", "heldout"))
        table.add_row(strategy, task, str(train), str(heldout))
    return table
