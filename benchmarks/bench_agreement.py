"""Is a benchmark's every question judged as lm-evaluation-harness judges it?

    python benchmarks/bench_agreement.py --model M --gsm8k DIRECTORY --peer ENV/bin/python \\
        --json benchmarks/results/agreement.json

The same model, the same local rows, greedy, both in float32: GSM8K (5 shots without a chat
template, none with it) and rows of facts in ARC's published format. The harness runs in a process
and an environment of its own (`pip install 'lm_eval[hf]==0.4.13'`). An answer agrees when every
measure of it is the same. What was measured is kept in --work, so that a second call continues.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Row, arguments, publish, work_directory

from distforge import durable
from distforge.evaluation.benchmarks import BenchmarksConfig, load_benchmarks
from distforge.evaluation.benchmarks.plain import PlainAnswerer
from distforge.models.loading import load_champion

_PEER = Path(__file__).with_name("lm_eval_peer.py")
# Of the harness, so many questions a process: a short one that can be repeated.
_PORTION = 16
_KINDS = {
    "mammal": ("dog", "whale", "bat", "horse", "grey squirrel"),
    "bird": ("eagle", "penguin", "blue jay", "owl", "duck"),
    "fish": ("salmon", "great white shark", "trout", "tuna", "eel"),
    "insect": ("ant", "honey bee", "beetle", "moth", "fly"),
    "metal": ("iron", "copper", "gold", "liquid mercury", "zinc"),
    "planet": ("Mars", "Venus", "Jupiter", "Saturn", "Neptune"),
    "fruit": ("apple", "ripe banana", "pear", "plum", "grape"),
    "gas": ("oxygen", "nitrogen", "carbon dioxide", "helium", "neon"),
}


@dataclass(frozen=True)
class Case:
    """One comparison; ``name`` is also that of the files it leaves."""

    name: str
    task: str
    template: bool
    shots: int


CASES = (
    Case("gsm8k", "gsm8k", template=False, shots=5),
    Case("gsm8k, chat template", "gsm8k", template=True, shots=0),
    Case("arc", "arc", template=False, shots=0),
    Case("arc, chat template", "arc", template=True, shots=0),
)


def facts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in ARC's published format: three to five choices, labelled by letters or numbers."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        kind = rng.choice(list(_KINDS))
        others = rng.sample([other for other in _KINDS if other != kind], rng.randint(2, 4))
        texts = [rng.choice(_KINDS[kind]), *(rng.choice(_KINDS[other]) for other in others)]
        right = texts[0]
        rng.shuffle(texts)
        labels = ("ABCDE" if number % 3 else "12345")[: len(texts)]
        rows.append(
            {
                "id": f"fact_{number}",
                "question": f"Which of these is a kind of {kind}?",
                "choices": {"text": texts, "label": list(labels)},
                "answerKey": labels[texts.index(right)],
            }
        )
    return rows


def plain_copy(model: Path, directory: Path) -> Path:
    """The model without its chat template, which distforge would use."""
    copy = directory / "plain"
    if not copy.exists():
        shutil.copytree(model, copy, ignore=shutil.ignore_patterns("chat_template*"))
        settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("chat_template", None)
        durable.write_json(copy / "tokenizer_config.json", settings)
    return copy


def theirs(case: Case, model: Path, data: Path, options: argparse.Namespace) -> list[Any]:
    """The harness's verdicts, a portion at a time."""
    found: list[Any] = []
    for first in range(0, options.items, _PORTION):
        items = list(range(first, min(first + _PORTION, options.items)))
        part = options.work / f"{case.name}-{first}.json"
        if not part.exists():
            job = {
                "model": str(model),
                "task": case.task,
                "test": str(data / "test.jsonl"),
                "train": str(data / "train.jsonl"),
                "template": case.template,
                "shots": case.shots,
                "items": items,
                "max_new_tokens": options.max_new_tokens,
                "batch_size": _PORTION,
                "dtype": "float32",
                "threads": torch.get_num_threads(),
            }
            durable.write_json(options.work / "job.json", job)
            command = [*options.before, options.peer, str(_PEER), str(options.work / "job.json")]
            subprocess.run([*command, str(part)], check=True, timeout=1800)
        found += json.loads(part.read_text(encoding="utf-8"))["verdicts"]
    return found


def ours(case: Case, model: Path, data: Path, options: argparse.Namespace) -> list[Any]:
    """Our verdicts, laid out as the harness's."""
    part = options.work / f"{case.name}-ours.json"
    if part.exists():
        kept: list[Any] = json.loads(part.read_text(encoding="utf-8"))
        return kept
    config = BenchmarksConfig(
        limit=options.items,
        gsm8k_shots=case.shots,
        arc_shots=case.shots,
        **{case.task: str(data)},
    )
    champion = load_champion(str(model), "float32")
    answerer = PlainAnswerer(
        champion.model, champion.tokenizer, options.max_new_tokens, batch_size=_PORTION
    )
    (benchmark,) = load_benchmarks(config)
    judged = benchmark.judge(answerer, range(options.items))
    found = [{**one.right, "answered": one.written} for one in judged]
    durable.write_json(part, found)
    return found


def rows_of(options: argparse.Namespace) -> list[Row]:
    """A row a case: of how many questions all measures agree; ratio 1 is all."""
    plain, arc, rows = plain_copy(options.model, options.work), options.work / "facts", []
    arc.mkdir(exist_ok=True)
    for name, count, seed in (("test", options.items, 0), ("train", 8, 1)):
        lines = [json.dumps(row) + "\n" for row in facts(count, seed)]
        durable.write_text(arc / f"{name}.jsonl", "".join(lines))
    for case in (case for case in CASES if case.name in options.cases):
        model = options.model if case.template else plain
        data = arc if case.task == "arc" else options.gsm8k
        mine, peer = ours(case, model, data, options), theirs(case, model, data, options)
        rows.append(agreement(case, mine, peer))
    return rows


def agreement(case: Case, mine: Sequence[dict[str, Any]], peer: Sequence[dict[str, Any]]) -> Row:
    """How many questions have the same verdict by every measure; equal texts are told beside."""
    measures = {"gsm8k": ("strict", "flexible"), "arc": ("acc", "acc_norm")}[case.task]
    pairs = list(zip(mine, peer, strict=True))
    alike = sum(all(one[name] == other[name] for name in measures) for one, other in pairs)
    told = ", ".join(f"{sum(one[name] for one in mine)} right by {name}" for name in measures)
    if case.task == "gsm8k":
        texts = sum(one["answered"] == other["answered"] for one, other in pairs)
        told += f", {texts} texts the same"
    work = f"{case.name}, {case.shots} shots: {told}"
    return Row(work, alike, "lm_eval 0.4.13", len(mine), "same verdicts", alike / len(mine))


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, required=True, help="with a chat template")
    parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl and test.jsonl")
    parser.add_argument("--peer", required=True, help="the Python that has lm_eval")
    parser.add_argument("--before", nargs="*", default=[], help="words in front of each process")
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.quick:
        options.items, options.max_new_tokens = 8, 32
    with work_directory(options.work) as work:
        options.work = work.resolve()
        rows = rows_of(options)
    publish(rows, options.json, items=options.items, max_new_tokens=options.max_new_tokens)


if __name__ == "__main__":
    main()
