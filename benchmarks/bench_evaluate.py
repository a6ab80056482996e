"""Tokens a second that `distforge evaluate` writes, against transformers' own ``generate``.

    python benchmarks/bench_evaluate.py --model M --gsm8k DIRECTORY \\
        --json benchmarks/results/evaluate.json

Both write greedily to the same rows of GSM8K, in the same batches (rows of like length together),
dtype, process and one thread, one after the other several times; medians. Counted are the tokens
up to each row's end: what is written behind it is of no use. Texts that end an answer, at which
evaluate stops as well, are left out on both sides. Seconds are those of the processor, so that a
machine with other work does not blur them; those of the clock stand beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness import Row, arguments, keep_part, measure_parts, publish, work_directory
from transformers import GenerationConfig, PreTrainedModel

from distforge.evaluation.benchmarks.answering import solved
from distforge.evaluation.generation import generate
from distforge.models.loading import load_champion
from distforge.rendering import Renderer
from distforge.rendering.plain import question_text


@dataclass(frozen=True)
class Case:
    """What is asked: solved examples in front of each question, the model's dtype, tokens."""

    shots: int
    dtype: str
    new_tokens: int
    rows: int


CASES = {
    "no examples": Case(0, "float32", 48, 16),
    "5 examples": Case(5, "float32", 32, 8),
    "no examples, bfloat16": Case(0, "bfloat16", 24, 8),
}


@torch.no_grad()
def transformers_writes(
    model: PreTrainedModel, renderer: Renderer, batches: list[list[list[int]]], new: int
) -> list[list[int]]:
    """By ``generate``, padded on the left; up to each row's end."""
    settings = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(renderer.stops),
        pad_token_id=renderer.pad,
    )
    written = []
    for rows in batches:
        width = max(map(len, rows))
        ids = torch.tensor([[renderer.pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        for row in found[:, width:].tolist():
            end = next((n for n, index in enumerate(row) if index in renderer.stops), len(row))
            written.append(row[: end + 1])
    return written


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of both, each time, and how many rows they wrote alike."""
    champion = load_champion(str(options.model), case.dtype)  # type: ignore[arg-type]
    model, tokenizer = champion.model, champion.tokenizer
    renderer = Renderer(tokenizer, model)
    rows = {
        name: [json.loads(line) for line in (options.gsm8k / name).read_text("utf-8").splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    }
    shots = [solved(row["question"], row["answer"]) for row in rows["train.jsonl"][: case.shots]]
    texts = [question_text(row["question"]) for row in rows["test.jsonl"][: case.rows]]
    prompts = renderer.continued([f"{''.join(shots)}{text}Answer:" for text in texts])
    prompts.sort(key=len)
    size = options.batch_size
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    names = ("ours", "theirs", "ours_by_the_clock", "theirs_by_the_clock")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.times):
        times = [(time.process_time(), time.perf_counter())]
        own = generate(model, tokenizer, prompts, case.new_tokens, size)
        times.append((time.process_time(), time.perf_counter()))
        others = transformers_writes(model, renderer, batches, case.new_tokens)
        times.append((time.process_time(), time.perf_counter()))
        mine = [[*one.token_ids, *([] if one.stop is None else [one.stop])] for one in own]
        taken = [
            end - begin for clock in zip(*times, strict=True) for begin, end in pairwise(clock)
        ]
        counts = [sum(map(len, mine)), sum(map(len, others))] * 2
        for name, count, seconds in zip(names, counts, taken, strict=True):
            found[name].append(count / seconds)
    alike = sum(one == other for one, other in zip(mine, others, strict=True))
    sizes = {"prompt_tokens": sum(map(len, prompts)), "written_tokens": sum(map(len, mine))}
    return {**asdict(case), **found, **sizes, "rows_alike": alike}


def row_of(name: str, found: dict[str, Any]) -> Row:
    """Medians of the speeds, and of the ratios of each pair."""
    ours, theirs = found["ours"], found["theirs"]
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    work = f"{name}: {found['rows']} rows, up to {found['new_tokens']} new tokens, {found['dtype']}"
    peer, unit = "transformers' generate", "tokens a CPU second"
    return Row(work, statistics.median(ours), peer, statistics.median(theirs), unit, ratio)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl and test.jsonl")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.times = 1
    with work_directory(options.work) as work:
        if options.case:
            keep_part(measure(CASES[options.case], options), work, options.case)
            return
        given = ["--model", str(options.model), "--gsm8k", str(options.gsm8k)]
        given += ["--batch-size", str(options.batch_size), "--times", str(options.times)]
        cases = measure_parts(
            {name: ["--case", name, *given] for name in options.cases}, work, jobs=1
        )
    rows = [row_of(name, found) for name, found in cases.items()]
    publish(rows, options.json, batch_size=options.batch_size, cases=cases)


if __name__ == "__main__":
    main()
