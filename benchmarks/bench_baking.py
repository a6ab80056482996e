"""What prompt baking reaches: one row a prompt and quantity.

    python benchmarks/bench_baking.py --json benchmarks/results/baking.json

Each of the seven strategy prompts is baked into the champion of a configuration, alone, and
measured on all held-out questions of its strategy. Then a prompt that is followed weakly is
pursued, the strength of all these bakes is swept, as a scale and counted in answers (drawn beside
the JSON), two prompts are baked in sequence, and the memory of the loss is measured at two
vocabularies. What was measured is kept in --work, so that a second call continues; --only names the
parts to measure (the strategies, pursuit, strength, sequence, memory, everyday). "everyday" is of a
model and a prompt of other people's, baked before by ``distforge bake-prompt``: --everyday names
the run, --gsm8k the directory of the questions that show what the model still knows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baking_everyday import everyday, everyday_rows
from baking_rows import other_rows, prompt_rows
from harness import arguments, publish, step1_config, work_directory
from strength_plot import plot_strengths
from torch import nn
from torch.profiler import ProfilerActivity, profile

from distforge import durable
from distforge.baking import PromptBaker, PromptBakingConfig, Step1Config
from distforge.baking.prompt.baked import BakedPrompt
from distforge.baking.prompt.divergence import StateTeacher, sum_divergence
from distforge.baking.prompt.measuring import Probe
from distforge.champion.make import ensure_champion
from distforge.data import STRATEGIES, STRATEGY_PROMPTS, Example, load_data
from distforge.models.loading import load_champion
from distforge.training.distributed import World, init_world

# Enough held-out questions to tell a point of accuracy from noise; self_doubt has no more to give.
EXAMPLES = 80_000
STRENGTHS = tuple(step / 10 for step in range(11))
# Held-out questions asked at each strength of each bake.
SWEPT = 100
WEAK = "weak prompt"
# Not a prompt that the champion was made on: it follows this on some of the questions only.
WEAK_PROMPT, WEAK_STRATEGY, ROUNDS = "Strategy: doubt the draft.", "self_doubt", 3
SEQUENCE, ASKED_IN_SEQUENCE = ("chain_of_thought", "self_doubt"), 250
# Questions of each other strategy, to see what a bake made the model forget.
OTHERS = 30
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
        self._data = config.data
        self._world = world
        self._questions = questions
        self._work = work

    @cached_property
    def _examples(self) -> Sequence[Example]:
        return load_data(self._data)

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
        report = baker.report(baked, questions=self._questions, others=OTHERS)
        return {**asdict(report), "kl_fall": report.kl_fall}

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

    def strength(self) -> dict[str, Any]:
        """Every bake above and the first of the pursuit, at every strength."""
        sweeps = {}
        for name in (*STRATEGIES, WEAK):
            weak = name == WEAK
            prompt, strategy = (
                (WEAK_PROMPT, WEAK_STRATEGY) if weak else (STRATEGY_PROMPTS[name], name)
            )
            baker = self.baker("pursuit" if weak else name)
            baked = (
                baker.pursue(prompt, 1, strategy=strategy).rounds[0] if weak else baker.bake(prompt)
            )
            probe = baker.measurer.probe(prompt, strategy, self._questions or SWEPT)
            sweeps[name] = sweep(baker, baked, probe, STRENGTHS)
            grades = baker.grade(baked)
            graded = [grades.strength(share) for share in STRENGTHS]
            sweeps[name]["graded"] = {
                "scales": graded,
                "measured": asdict(grades),
                **sweep(baker, baked, probe, graded),
            }
        return {"strengths": STRENGTHS, "sweeps": sweeps}

    def sequence(self) -> dict[str, Any]:
        """Two prompts one after another; the forgetting matrix."""
        prompts = [STRATEGY_PROMPTS[strategy] for strategy in SEQUENCE]
        baker = self.baker("sequence")
        questions = self._questions or ASKED_IN_SEQUENCE
        sequence = baker.bake_sequence(prompts, questions=questions)
        return {**asdict(sequence.forgetting), "questions": questions}

    def memory(self) -> dict[str, Any]:
        """Peak bytes of the loss and its backward at both vocabularies, and of the naive form."""
        chunk = self._baking.chunk_elements
        peaks = {
            name: [peak_bytes(v, elements) for v in VOCABULARIES]
            for name, elements in (("chunked", chunk), ("naive", 1 << 40))
        }
        return {"tokens": ROWS, "vocabularies": VOCABULARIES, **peaks}


def sweep(
    baker: PromptBaker, baked: BakedPrompt, probe: Probe, scales: Sequence[float]
) -> dict[str, Any]:
    """Adherence, accuracy and held-out KL of a bake by scale, and how they go with the strength."""
    models = [baked.at(scale).model for scale in scales]
    cells = [baker.measurer.condition(model, probe) for model in models]
    adherence = [cell.adherence for cell in cells]
    kl = [baker.measurer.kl(model, probe.trajectories) for model in models]
    return {
        "adherence": adherence,
        "accuracy": [cell.accuracy for cell in cells],
        "kl": kl,
        "questions": cells[0].questions,
        "spearman": spearman(STRENGTHS, adherence),
        "spearman_kl": spearman(STRENGTHS, [-value for value in kl]),
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
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    changes = ((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak


def measured(name: str, wanted: bool, part: Callable[[], Any], work: Path) -> Any:
    """What a part found, now or in an earlier call; None where it was neither."""
    path = work / f"{name}.json"
    if not path.exists():
        if not wanted:
            return None
        result = part()
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, result, indent=None)
    return json.loads(path.read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--config", type=Path, default=Path("configs/quick.toml"))
    parser.add_argument("--champion", default="", help="a model; by default the configuration's")
    parser.add_argument("--work", type=Path, help="where what was measured is kept")
    parser.add_argument("--everyday", type=Path, help="a finished run of distforge bake-prompt")
    parser.add_argument("--gsm8k", type=Path, help="a directory with GSM8K's test.jsonl")
    parser.add_argument("--only", nargs="*", default=[], help="parts to measure; by default all")
    return parser.parse_args()


def main() -> None:
    options = parse()
    config = step1_config(options.config)
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
    else:
        config = replace(config, data=replace(config.data, num_examples=EXAMPLES))
    with work_directory(options.work) as work:
        bench = Bench(champion, config, world, 20 if options.quick else 0, work)
        others = ("memory",) if options.quick else ("pursuit", "strength", "sequence", "memory")
        jobs: dict[str, Callable[[], Any]] = {
            **{s: (lambda s=s: bench.prompt(s)) for s in strategies},
            **{name: getattr(bench, name) for name in others},
        }
        if options.everyday:
            jobs["everyday"] = lambda: everyday(options.everyday, options.gsm8k)
        only = options.only or list(jobs)
        found = {name: measured(name, name in only, job, work) for name, job in jobs.items()}
    parts = {name: value for name, value in found.items() if value is not None}
    rows = [row for name in strategies if name in parts for row in prompt_rows(name, parts[name])]
    rows += other_rows(parts, SEQUENCE)
    if "everyday" in parts:
        rows += everyday_rows(parts["everyday"])
    publish(rows, options.json, parts=parts)
    if "strength" in parts:
        plot_strengths(parts["strength"], options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
