"""The parts of `bench_rl`: one run each, and the exam that every run's model takes."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rl_rewards
import torch
from word_problems import write_problems

from distforge import rendering
from distforge.cli import main as distforge
from distforge.data import DataConfig
from distforge.data.dataset import TokenRows, collate
from distforge.evaluation.intervals import bootstrap_mean
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.quietstar.asked import Row, asked_items, opening_of, read_questions, rendered
from distforge.quietstar.writing import AnswerTags, Writing
from distforge.rewards import RewardFunctions
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from distforge.thinking.model import ThinkingModel
from distforge.thinking.sampling import ThoughtConfig
from distforge.training.distributed import World

Settings = dict[str, Any]


def problems(work: Path, settings: Settings) -> Path:
    """The directory of the word problems, made once."""
    directory = work / "problems"
    if not (directory / "heldout.jsonl").is_file():
        probes = settings["probe_items"]
        train, heldout = settings["train_problems"], settings["heldout_problems"] + probes
        write_problems(directory, 0, train, heldout)
    return directory


def examine(model: str, directory: Path, settings: Settings) -> dict[str, Any]:
    """Greedy answers to the last held-out questions: how many are right, and how long it took."""
    champion = load_champion(model)
    rows = _rows(directory, "heldout")[-settings["heldout_problems"] :]
    prompts = rendered(rows, champion.tokenizer, "")
    tags = AnswerTags.of(champion.tokenizer, champion.model, opening_of(prompts))
    thought = ThoughtConfig(max_tokens=settings["max_tokens"], closing="learned", greedy=True)
    writing = Writing(champion.tokenizer, tags, thought, RewardFunctions(("math",)))
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    began = time.process_time()
    items = asked_items(rows, prompts, 1000)
    thinking = ThinkingModel.wrap(champion.model, mixing=False)
    answers = writing.answer(thinking, items, 64, world, 0)
    return {
        "right": [int(answer.reward) for answer in answers],
        "ended": sum(answer.finished for answer in answers) / len(answers),
        "exam_cpu_seconds": time.process_time() - began,
        "samples": [answer.text for answer in answers[:4]],
    }


def _rows(directory: Path, split: str) -> list[Row]:
    rows = read_questions(DataConfig(path=str(directory)))
    return [row for row in rows if row.example.split == split]


def reinforced(
    model: str, directory: Path, work: Path, settings: Settings, reward: str, seed: int
) -> dict[str, Any]:
    """`distforge think` on the questions of ``directory``, then the exam of what it left."""
    name = f"{directory.name}_{reward}_{seed}"
    rl_rewards.CALLS.clear()
    words = {
        "baked": model,
        "data.path": str(directory),
        "reward.function": f"rl_rewards:{reward}",
        "output": str(work),
        "name": name,
        "existing": "replace",
        "thought.max-tokens": settings["max_tokens"],
        "thought.temperature": settings["temperature"],
        "episodes.episodes": settings["steps"] * settings["questions"],
        "episodes.batch-size": settings["questions"],
        "episodes.thoughts": settings["group"],
        "episodes.schedule": "constant",
        "episodes.warmup-episodes": 0,
        "episodes.seed": seed,
        "optimizer.adamw.lr": settings["lr"],
        "optimizer.muon-grokfast.kl-coefficient": settings["kl"],
        "probe.every-steps": settings["probe_every"],
        "probe.items": settings["probe_items"],
        # Unlike a step's, so that the calls of both can be distinguished.
        "probe.batch-size": settings["questions"] * settings["group"] + 1,
        "probe.exam-items": 2,
        "checkpoint-every": 0,
        "engine.dtype": "float32",
        "telemetry.wandb-mode": "disabled",
    }
    given = [part for key, value in words.items() for part in (f"--{key}", str(value))]
    began, cpu = time.perf_counter(), time.process_time()
    if distforge(["think", *given, "--registry.no-enabled"]) not in (0, 3):
        raise RuntimeError(f"the run {name} was refused or stopped")
    return {
        "run_seconds": time.perf_counter() - began,
        "run_cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        **_curve(work / name, settings),
        **examine(str(work / name / "model"), directory, settings),
    }


def _curve(run: Path, settings: Settings) -> dict[str, Any]:
    """Rewards of each step, and its seconds."""
    records = [
        r.metrics for r in read_metrics(run / "metrics.jsonl") if names.RL["reward"] in r.metrics
    ]
    completions = settings["questions"] * settings["group"]
    # From one call of a step to the next is a whole step, where no probe came between.
    pairs = itertools.pairwise(rl_rewards.CALLS)
    whole = [(a, b) for a, b in pairs if a[0] == b[0] == completions]
    return {
        "rewards": [record[names.RL["reward"]] for record in records],
        "told_apart": [record[names.RL_TOLD_APART] for record in records],
        "kl": [record[names.RL["kl_divergence"]] for record in records],
        "lengths": [record[names.RL["thought_length"]] for record in records],
        "waited": [record[names.RL_WAITED] for record in records],
        "step_cpu_seconds": [b[1] - a[1] for a, b in whole],
        "step_seconds": [b[2] - a[2] for a, b in whole],
    }


def answered(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> TokenRows:
    """Rows of prompts and their answers, whose labels are the answers."""
    pairs = list(zip(prompts, answers, strict=True))
    rows = (([*prompt, *answer], len(prompt)) for prompt, answer in pairs)
    return TokenRows(rows, [str(number) for number in range(len(pairs))])


def supervised(
    model: str, directory: Path, work: Path, settings: Settings, cpu_seconds: float
) -> dict[str, Any]:
    """Plain cross entropy on the answers that the rows give, for as many seconds of the processor
    as reinforcement took; then the exam."""
    champion = load_champion(model)
    renderer = rendering.Renderer(champion.tokenizer, champion.model)
    rows = _rows(directory, "train")
    prompts = rendered(rows, champion.tokenizer, "")
    answers = renderer.completions([row.example.answer for row in rows])
    dataset = answered(prompts, answers)
    network = champion.model.float().train()
    optimizer = torch.optim.AdamW(network.parameters(), settings["lr"], weight_decay=0.0)
    size = settings["questions"] * settings["group"]
    draw, losses = torch.Generator().manual_seed(0), list[float]()
    end = time.process_time() + cpu_seconds
    while time.process_time() < end:
        chosen = torch.randint(len(dataset), (size,), generator=draw).tolist()
        loss = network(**collate([dataset[n] for n in chosen], renderer.pad)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    saved = work / "supervised_model"
    export_model(network.eval(), champion.tokenizer, saved)
    return {"losses": losses, **examine(str(saved), directory, settings)}


def trl(model: str, work: Path, settings: Settings, python: str, seed: int) -> dict[str, Any]:
    """TRL on the same, then the same exam."""
    directory = problems(work, settings)
    saved, job, result = work / f"trl_{seed}_model", work / "trl_job.json", work / "trl_result.json"
    given = {**settings, "model": model, "seed": seed, "save": str(saved), "micro_batch": 8}
    given |= {"output": str(work / "trl_out"), "train": str(directory / "train.jsonl")}
    job.write_text(json.dumps(given), encoding="utf-8")
    peer = Path(__file__).with_name("trl_peer.py")
    subprocess.run([python, str(peer), str(job), str(result)], check=True)
    found = json.loads(result.read_text(encoding="utf-8"))
    return {**found, **examine(str(saved), directory, settings)}


def gain(before: list[int], after: list[int]) -> dict[str, float]:
    """Accuracy before and after of the same questions, and the gain with its 95% interval."""
    pairs = zip(before, after, strict=True)
    found = asdict(bootstrap_mean([float(second - first) for first, second in pairs]))
    return {"before": sum(before) / len(before), "after": sum(after) / len(after), "gain": found}
