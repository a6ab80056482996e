"""``distforge data make|check|show``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distforge.activity import counted, doing
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
from distforge.data.answers import answer_kind
from distforge.data.generate import find_leaks
from distforge.data.tasks import TraceError
from distforge.errors import InputError


@dataclass(frozen=True)
class MakeConfig:
    """Make a dataset of verified examples, a tenth of them held out.

    num_examples: how many, at least 70. seed: of the questions.
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
    """Check a dataset: every trace that has a checker verified, no question twice, no held-out
    problem in training.

    path: a directory with a file for each split, a saved Hugging Face dataset, or one JSONL or
        Parquet file.
    """

    path: Path


@dataclass(frozen=True)
class ShowConfig:
    """Print examples of a dataset.

    path: the dataset; without it, one is made on the spot.
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
    console = Console(soft_wrap=True)
    console.print(_contents(examples))
    console.print(
        f"{len(examples)} examples, every trace verified, in {time.monotonic() - began:.1f} s; "
        f"sha256 {dataset_sha256(examples)[:16]}; written to {config.output}"
    )
    return 0


def check(config: CheckConfig) -> int:
    """Verify what can be, and say what cannot; `InputError` names the first row that fails."""
    examples = read_examples(config.path)
    seen: dict[int, int] = {}
    verified, untold, kinds = 0, list[int](), Counter[str]()
    for position, example in enumerate(counted(examples, "verifying examples")):
        try:
            verified += "answer" in verify_trace(example)
        except TraceError as error:
            raise InputError(
                f"{examples.where(position)}: example {example.id}: {error}; correct the row or "
                "remove it"
            ) from error
        first = seen.setdefault(hash((example.question, example.context)), position)
        if first != position:
            raise InputError(
                f"{examples.where(position)}: the question of {examples.where(first)} comes again: "
                f"{example.question!r}; remove one of the two"
            )
        kinds[answer_kind(example.answer)] += 1
        if not example.reasoning:
            untold.append(position)
    with doing("looking for held-out problems in training"):
        leaks = find_leaks(examples)
    if leaks:
        raise InputError(
            f"{config.path}: {len(leaks)} held-out problems are in training: {leaks[0]!r}"
        )
    console = Console(soft_wrap=True)
    console.print(_contents(examples))
    console.print(examples.note)
    console.print(_findings(len(examples), verified, kinds))
    if untold:
        console.print(
            f"{len(untold):,} rows give an answer and no reasoning, the first in "
            f"{examples.where(untold[0])}; where they have some, write their answer after "
            "'Answer:' or '####', or in \\boxed{}",
            markup=False,
        )
    return 0


def _findings(rows: int, verified: int, kinds: Counter[str]) -> str:
    found = f"{rows:,} rows, {verified:,} with a checker"
    if verified:
        found += ": their answers were recomputed and their traces verified"
    if verified < rows:
        found += (
            f"; of {rows - verified:,} rows only the form was checked, since nothing says whether "
            "their answers are right"
        )
    answers = ", ".join(f"{count:,} as {kind}" for kind, count in kinds.most_common())
    return f"{found}\nno question twice, no held-out problem in training\ncompared: {answers}"


def show(config: ShowConfig) -> int:
    """Print question, reasoning (a line a tag) and answer."""
    if config.strategy and config.strategy not in STRATEGIES:
        raise InputError(
            f"unknown strategy {config.strategy!r}; expected one of {', '.join(STRATEGIES)}"
        )
    examples = read_examples(config.path) if config.path else make_examples(700, 0)
    console = Console()
    for strategy in (config.strategy,) if config.strategy else (*STRATEGIES, ""):
        for example in islice((e for e in examples if e.strategy == strategy), config.count):
            console.rule(f"{strategy or '–'} · {example.task} · {example.split}", align="left")
            for message in example.context:
                console.print(f"{message.role}: {message.content}", markup=False, highlight=False)
            reasoning = example.reasoning.replace("<", "\n<").strip()
            console.print(
                f"Question: {example.question}\n{reasoning}\nAnswer: {example.answer}\n",
                markup=False,
                highlight=False,
            )
    return 0


def _contents(examples: Sequence[Example]) -> Table:
    counts = Counter((e.strategy, e.task, e.split) for e in examples)
    table = Table("strategy", "task", "train", "held out")
    for strategy, task in sorted({(s, t) for s, t, _ in counts}):
        train, heldout = (counts[strategy, task, split] for split in ("train", "heldout"))
        table.add_row(strategy or "–", task, str(train), str(heldout))
    return table
