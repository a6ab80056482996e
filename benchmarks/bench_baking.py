"""What prompt baking reaches: one row a prompt and quantity.

    python benchmarks/bench_baking.py --json benchmarks/results/baking.json

Each of the seven strategy prompts is baked into the champion of a configuration, alone, and
measured on all held-out questions of its strategy. Then the strength of one bake is swept, a prompt
that is followed weakly is pursued, two prompts are baked in sequence, and the memory of the loss is
measured at two vocabularies. What was measured is kept in --work, so that a second call continues;
--only names the parts to measure (the strategies, strength, pursuit, sequence, memory).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, arguments, publish
from torch import nn
from torch.profiler import ProfilerActivity, profile

from distforge.baking import PromptBaker, PromptBakingConfig, Step1Config
from distforge.baking.divergence import StateTeacher, sum_divergence
from distforge.baking.step1 import load_data
from distforge.config import load_config
from distforge.data import STRATEGIES, STRATEGY_PROMPTS
from distforge.models.loading import load_champion
from distforge.training.champion import ensure_champion
from distforge.training.distributed import World, init_world

STRENGTHS = tuple(step / 10 for step in range(11))
SWEPT = "self_doubt"
# Not a prompt that the champion was made on: it follows this on some of the questions only.
WEAK_PROMPT, WEAK_STRATEGY, ROUNDS = "Doubt the draft.", "self_doubt", 3
SEQUENCE = ("chain_of_thought", "self_doubt")
# Questions of each other strategy, to see what a bake made the model forget.
OTHERS = 30
SECONDS_ALLOWED = 120.0
VOCABULARIES, ROWS, WIDTH = (2_000, 50_000), 2048, 64


class Bench:
    """The parts of the benchmark; each returns JSON.

    ``questions``: held-out questions asked in each condition, 0 for all.
    """

    def __init__(
        self, champion: str, config: Step1Config, world: World, questions: int, work: Path
    ) -> None:
        self._champion = champion
        self._baking = config.prompt_baking
        self._examples = load_data(config.data)
        self._world = world
        self._questions = questions
        self._work = work

    def baker(self, name: str, config: PromptBakingConfig | None = None) -> PromptBaker:
        """A baker of its own for every part, on a champion just loaded."""
        champion = load_champion(self._champion)
        return PromptBaker(
            champion.model,
            champion.tokenizer,
            config=config or self._baking,
            examples=self._examples,
            world=self._world,
            directory=self._work / name,
        )

    def prompt(self, strategy: str) -> dict[str, Any]:
        """Bake one strategy's prompt; its report."""
        baker = self.baker(strategy)
        baked = baker.bake(STRATEGY_PROMPTS[strategy])
        return baker.report(baked, questions=self._questions, others=OTHERS).as_dict()

    def strength(self) -> dict[str, Any]:
        """Adherence of one bake at every strength."""
        baker = self.baker(SWEPT)
        baked = baker.bake(STRATEGY_PROMPTS[SWEPT])
        probe = baker.measurer.probe(STRATEGY_PROMPTS[SWEPT], SWEPT, self._questions)
        cells = [baker.measurer.condition(baked.at(s).model, probe) for s in STRENGTHS]
        adherence = [cell.adherence for cell in cells]
        return {
            "strengths": STRENGTHS,
            "adherence": adherence,
            "accuracy": [cell.accuracy for cell in cells],
            "spearman": spearman(STRENGTHS, adherence),
        }

    def pursuit(self) -> dict[str, Any]:
        """Adherence to a weakly followed prompt, after each round."""
        baker = self.baker("pursuit")
        pursuit = baker.pursue(WEAK_PROMPT, ROUNDS, strategy=WEAK_STRATEGY)
        probe = baker.measurer.probe(WEAK_PROMPT, WEAK_STRATEGY, self._questions)
        prompted = baker.measurer.condition(baker.model, probe, WEAK_PROMPT)
        rounds = [baker.measurer.condition(baked.model, probe) for baked in pursuit.rounds]
        return {
            "prompted": asdict(prompted),
            "rounds": [asdict(cell) for cell in rounds],
            "drift": pursuit.drift,
            "held_back": pursuit.held_back,
        }

    def sequence(self) -> dict[str, Any]:
        """Two prompts one after another; the forgetting matrix."""
        prompts = [STRATEGY_PROMPTS[strategy] for strategy in SEQUENCE]
        baker = self.baker("sequence")
        sequence = baker.bake_sequence(prompts, questions=self._questions or 250)
        return asdict(sequence.forgetting)

    def memory(self) -> dict[str, Any]:
        """Peak bytes of the loss and its backward at both vocabularies, and of the naive form."""
        chunk = self._baking.chunk_elements
        return {
            name: {str(v): peak_bytes(v, elements) for v in VOCABULARIES}
            for name, elements in (("chunked", chunk), ("naive", 1 << 40))
        }


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values)
        return np.array([(array < v).sum() + ((array == v).sum() + 1) / 2 for v in array])

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def peak_bytes(vocabulary: int, chunk_elements: int) -> int:
    """Most bytes that loss and backward hold beyond the states and the (frozen) head."""
    head = nn.Linear(WIDTH, vocabulary, bias=False).requires_grad_(False)
    states = torch.randn(ROWS, WIDTH).requires_grad_()
    teacher = StateTeacher(torch.randn(ROWS, WIDTH), head)
    ids = torch.zeros(ROWS, dtype=torch.int64)

    def step() -> None:
        states.grad = None
        loss, _ = sum_divergence(
            states, head, teacher, ids, beta=0.0, chunk_elements=chunk_elements
        )
        loss.backward()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    changes = ((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


def prompt_rows(strategy: str, report: dict[str, Any]) -> list[Row]:
    """KL, accuracy, adherence and seconds of one bake."""
    baked, prompted = (report["conditions"][name] for name in ("baked", "prompted"))
    before, after = report["kl_before"], report["kl_after"]
    rows = [
        Row(f"{strategy}: held-out KL", after, "no bake", before, "nats a token", before / after)
    ]
    for quantity in ("accuracy", "adherence"):
        ours, peer = baked[quantity], prompted[quantity]
        rows.append(
            Row(
                f"{strategy}: {quantity} without the prompt, {baked['questions']} questions",
                ours,
                "champion with it",
                peer,
                "fraction",
                ours / max(peer, 1e-9),
            )
        )
    seconds = report["seconds"]
    rows.append(
        Row(
            f"{strategy}: time of the bake, {report['steps']} steps",
            seconds,
            "allowed",
            SECONDS_ALLOWED,
            "s",
            SECONDS_ALLOWED / seconds,
        )
    )
    return rows


def other_rows(parts: dict[str, Any]) -> list[Row]:
    """Strength, pursuit, sequence and memory, as far as they were measured."""
    rows = []
    if "strength" in parts:
        rho = parts["strength"]["spearman"]
        work = f"{SWEPT}: adherence rises with strength (Spearman, {len(STRENGTHS)} strengths)"
        rows.append(Row(work, rho, "wanted", 0.95, "correlation", rho / 0.95))
    if "pursuit" in parts:
        cells = parts["pursuit"]["rounds"]
        first, last = cells[0]["adherence"], cells[-1]["adherence"]
        work = f"weak prompt: adherence after {len(cells)} rounds of pursuit"
        rows.append(Row(work, last, "one bake", first, "fraction", last / max(first, 1e-9)))
    if "sequence" in parts:
        accuracy = parts["sequence"]["accuracy"]
        last, own = accuracy[-1][0], accuracy[1][0]
        work = f"{SEQUENCE[0]}: accuracy after baking {SEQUENCE[1]} too"
        rows.append(Row(work, last, "before that", own, "fraction", last / max(own, 1e-9)))
    if "memory" in parts:
        small, large = (parts["memory"]["chunked"][str(v)] for v in VOCABULARIES)
        naive = parts["memory"]["naive"][str(VOCABULARIES[1])]
        work = f"peak memory of the loss, {ROWS} tokens, vocabulary {VOCABULARIES[1]}"
        for peer, value in ((f"vocabulary {VOCABULARIES[0]}", small), ("not chunked", naive)):
            rows.append(Row(work, large / 1e6, peer, value / 1e6, "MB", value / large))
    return rows


def measured(name: str, wanted: bool, part: Callable[[], Any], work: Path) -> Any:
    """What a part found, now or in an earlier call; None where it was neither."""
    path = work / f"{name}.json"
    if not path.exists():
        if not wanted:
            return None
        result = json.dumps(part())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result)
    return json.loads(path.read_text())


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--config", type=Path, default=Path("configs/quick.toml"))
    parser.add_argument("--champion", default="", help="a model; by default the configuration's")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--only", nargs="*", default=[], help="parts to measure; by default all")
    return parser.parse_args()


def main() -> None:
    options = parse()
    config = load_config(Step1Config, options.config, [])
    world = init_world()
    champion = options.champion or config.champion.path
    if not options.champion:
        ensure_champion(config.champion, config.engine, config.data.max_length, world)
    strategies = STRATEGIES
    if options.quick:
        strategies = ("self_doubt",)
        small = replace(config.prompt_baking.training, max_steps=10)
        quick = replace(config.prompt_baking, num_questions=32, training=small)
        config = replace(config, prompt_baking=quick)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        bench = Bench(champion, config, world, 20 if options.quick else 0, work)
        others = ("memory",) if options.quick else ("strength", "pursuit", "sequence", "memory")
        jobs: dict[str, Callable[[], Any]] = {
            **{s: (lambda s=s: bench.prompt(s)) for s in strategies},
            **{name: getattr(bench, name) for name in others},
        }
        only = options.only or list(jobs)
        found = {name: measured(name, name in only, job, work) for name, job in jobs.items()}
    parts = {name: value for name, value in found.items() if value is not None}
    rows = [row for name in strategies if name in parts for row in prompt_rows(name, parts[name])]
    publish(rows + other_rows(parts), options.json, parts=parts)


if __name__ == "__main__":
    main()
