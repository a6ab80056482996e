"""Whether weights of 16 bits without a float32 master train as far as float32 ones.

    python benchmarks/bench_precision.py --model MODEL --json benchmarks/results/precision.json

MuonGrokfast trains a model further on the questions, reasoning and answers of a dataset, its
weights stored in float32, in bfloat16 rounded stochastically (what it does with such weights), or
in bfloat16 rounded to nearest. All compute in float32: weights are widened for the pass, and
gradients of 16-bit weights are rounded to 16 bits. So what differs is what is stored. Every way
sees the same rows in the same order; seeds draw other orders. What counts is the loss of a token
of held-out rows afterwards: the means may differ by no more than float32 does from seed to seed.
What was measured is kept in --work, so that a second call continues. Rows of other models that
--json already holds stay there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import (
    Row,
    arguments,
    keep_part,
    machine,
    measure_parts,
    publish,
    versions,
    work_directory,
)
from torch import Tensor, nn
from torch.func import functional_call

from distforge.data import DataConfig, load_data
from distforge.data.examples import of_split
from distforge.data.schema import Example
from distforge.models.loading import Champion, load_champion
from distforge.optim import MuonGrokfast, MuonGrokfastConfig

WAYS = ("float32", "bfloat16, rounded stochastically", "bfloat16, rounded to nearest")
BEFORE = "before"
IGNORED = -100
# What decides the figures: part of the name under which one is kept.
SETTINGS = ("steps", "batch", "length", "rows", "heldout")


def encoded(champion: Champion, examples: Sequence[Example], length: int) -> list[Tensor]:
    """Each row as the ids of its text, cut off at ``length``."""
    texts = [f"{row.question}\n{row.reasoning}\n{row.answer}" for row in examples]
    return [torch.tensor(champion.tokenizer(text)["input_ids"][:length]) for text in texts if text]


def batches(rows: Sequence[Tensor], size: int, order: Sequence[int]) -> Iterator[Tensor]:
    """Padded batches with the labels' padding, in that order."""
    for start in range(0, len(order) - size + 1, size):
        chosen = [rows[i] for i in order[start : start + size]]
        yield nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=IGNORED)


class Trained:
    """A copy of the model whose weights are stored in one of ``WAYS``."""

    def __init__(self, champion: Champion, way: str, seed: int) -> None:
        self.model = champion.model
        dtype = torch.float32 if way == WAYS[0] else torch.bfloat16
        self.weights = {
            name: nn.Parameter(parameter.detach().to(dtype, copy=True))
            for name, parameter in self.model.named_parameters()
        }
        config = MuonGrokfastConfig.baking().replace(seed=seed, stochastic_rounding=way == WAYS[1])
        self.optimizer = MuonGrokfast(list(self.weights.items()), config)

    def loss(self, labels: Tensor) -> Tensor:
        wide = {name: weight.float() for name, weight in self.weights.items()}
        given = {"input_ids": labels.clamp_min(0), "labels": labels}
        return functional_call(self.model, wide, kwargs=given, tie_weights=True).loss

    def step(self, labels: Tensor) -> None:
        self.loss(labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def heldout(self, rows: Sequence[Tensor], size: int) -> float:
        """Mean loss of a token."""
        total, tokens = 0.0, 0
        for labels in batches(rows, size, range(len(rows))):
            count = int((labels[:, 1:] != IGNORED).sum())
            total, tokens = total + float(self.loss(labels)) * count, tokens + count
        return total / tokens


def measure(options: Any) -> float:
    """The held-out loss of ``options.part``, a way of storing weights, and ``options.seed``."""
    champion = load_champion(options.model)
    data = load_data(DataConfig(path=options.data))
    heldout = encoded(champion, of_split(data, "heldout")[: options.heldout], options.length)
    begin = time.process_time()
    if options.part == BEFORE:
        return Trained(champion, WAYS[0], 0).heldout(heldout, options.batch)
    trained_on = encoded(champion, of_split(data, "train")[: options.rows], options.length)
    trained = Trained(champion, options.part, options.seed)
    order = list(range(len(trained_on)))
    random.Random(options.seed).shuffle(order)
    rows = list(batches(trained_on, options.batch, order * options.steps))
    for labels in rows[: options.steps]:
        trained.step(labels)
    loss = trained.heldout(heldout, options.batch)
    seconds = time.process_time() - begin
    print(f"{options.part}, seed {options.seed}: {loss:.4f} ({seconds:.0f} CPU s)", flush=True)
    return loss


def name_of(options: Any, way: str, seed: int) -> str:
    values = "_".join(str(getattr(options, key)) for key in SETTINGS)
    return f"{options.name}_{values}_{way.replace(', ', '_').replace(' ', '_')}_{seed}"


def measure_all(options: Any, work: Path) -> dict[str, Any]:
    """By way, the held-out loss of each seed; and what it was before."""
    seeds = {way: range(options.seeds) for way in WAYS} | {BEFORE: range(1)}
    shared = ["--model", str(options.model), "--data", options.data, "--name", options.name]
    shared += [text for key in SETTINGS for text in (f"--{key}", str(getattr(options, key)))]
    parts = {
        name_of(options, way, seed): ["--part", way, "--seed", str(seed), *shared]
        for way, numbers in seeds.items()
        for seed in numbers
    }
    found = measure_parts(parts, work, options.jobs)
    losses = {
        way: [found[name_of(options, way, seed)]["loss"] for seed in numbers]
        for way, numbers in seeds.items()
    }
    means = {way: {"losses": losses[way], "mean": statistics.mean(losses[way])} for way in WAYS}
    return {BEFORE: {"loss": losses[BEFORE][0]}, **means}


def rows_of(model: str, losses: dict[str, Any]) -> list[Row]:
    wide = losses[WAYS[0]]["mean"]
    return [
        Row(
            work=f"{model}: {way}",
            ours=losses[way]["mean"],
            peer=WAYS[0],
            peer_value=wide,
            unit="held-out loss of a token",
            ratio=wide / losses[way]["mean"],
        )
        for way in WAYS[1:]
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", required=True, help="a directory of a causal language model")
    parser.add_argument("--name", default="", help="of the model; its directory's where not given")
    parser.add_argument("--data", default="", help="a dataset; made where none is given")
    for name, value in (("steps", 200), ("batch", 16), ("length", 192), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, default=4096, help="of training at most")
    parser.add_argument("--heldout", type=int, default=256, help="rows at most")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--jobs", type=int, default=1, help="parts at once, of one thread each")
    parser.add_argument("--part", choices=(BEFORE, *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.name = options.name or Path(options.model).resolve().name
    if options.quick:
        options.steps, options.seeds, options.rows, options.heldout = 2, 1, 64, 16
    torch.manual_seed(0)
    with work_directory(options.work) as work:
        if options.part:
            loss = measure(options)
            keep_part({"loss": loss}, work, name_of(options, options.part, options.seed))
            return
        losses = measure_all(options, work)
    of_seeds = losses[WAYS[0]]["losses"]
    spread = max(of_seeds) - min(of_seeds)
    print(f"from seed to seed, {WAYS[0]} differs by {spread:.4f}")
    models: dict[str, Any] = {}
    if options.json.exists():
        models = json.loads(options.json.read_text(encoding="utf-8"))["models"]
    models[options.name] = {
        "losses": losses,
        "spread_of_float32": spread,
        "settings": {key: getattr(options, key) for key in (*SETTINGS, "seeds")},
        "data": Path(options.data).name,
        "machine": machine(),
        "versions": versions(),
    }
    rows = [row for name, found in models.items() for row in rows_of(name, found["losses"])]
    publish(rows, options.json, models=models)


if __name__ == "__main__":
    main()
