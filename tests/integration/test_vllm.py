"""The engine `vllm` with the real one: its log-probabilities, weights without a restart, kills."""

from __future__ import annotations

import json
import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from distforge.cli import main
from distforge.errors import InputError
from distforge.models.export import export_model
from distforge.rollouts import RolloutConfig, RolloutRequest, open_pool
from distforge.rollouts.engines.sampling import Sampling
from distforge.rollouts.engines.vllm_engine import VllmRecipe
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from tests.documented import command
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.vllm_environment import vllm_python

PAGE = "docs/reinforce.md"
BEGINNING = "distforge think --baked SmolLM2-135M-Instruct --data.path gsm8k --reward.function math"
VOCABULARY = 320
PUBLICATIONS = 20
PROMPTS = [[9, 10, 11, 12], [20, 21, 22, 23, 24, 25]]
SAMPLING = Sampling(group=4, max_tokens=16, temperature=0.7, stop=1, banned=(0, 5, 7), pad=0)
# Nats a token, mean, in bfloat16: what the engine is held to.
MOST_GAP = 0.05
# Python, torch and vLLM start anew in every actor; the machine may be busy.
PATIENT = {"num_actors": 1, "timeout_seconds": 1200.0, "request_seconds": 600.0}

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


def model(seed: int, *, tied: bool) -> LlamaForCausalLM:
    """Smaller weights than most tests want: a distribution about as flat as a language model's."""
    return tiny_llama(
        VOCABULARY,
        seed=seed,
        tied=tied,
        max_positions=256,
        width=64,
        heads=(2, 1),
        spread=0.1,
    )


def recipe(lm: LlamaForCausalLM) -> VllmRecipe:
    described = json.loads(lm.config.to_json_string(use_diff=False))
    config = json.dumps({**described, "architectures": [type(lm).__name__]})
    return VllmRecipe(config, SAMPLING, context=32, sequences=8, dtype="bfloat16")


def published(lm: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {f"lm.{name}": value for name, value in lm.state_dict().items()}


def requests(step: int) -> list[RolloutRequest]:
    """The same of every step, so that answers differ by the weights alone."""
    return [RolloutRequest(step, 4, PROMPTS)]


@pytest.fixture(autouse=True)
def unwatched_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray kills actors where other programs have left little memory: kills are counted here."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")


def gap(result: dict[str, torch.Tensor], lm: LlamaForCausalLM) -> float:
    """Mean over tokens, from what the model itself makes of them."""
    gaps = []
    for n, (length, row) in enumerate(
        zip(result["lengths"].tolist(), result["rows"].tolist(), strict=True)
    ):
        prompt, tokens = PROMPTS[row], result["tokens"][n, :length].tolist()
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        logits[:, list(SAMPLING.banned)] = -torch.inf
        own = (logits / SAMPLING.temperature).log_softmax(-1)[range(length), tokens]
        gaps.append((own - result["log_probs"][n, :length]).abs())
    return float(torch.cat(gaps).mean())


@pytest.mark.parametrize("tied", [True, False])
def test_versions_go_in_without_a_restart_and_a_kill_costs_one(tied: bool) -> None:
    config = RolloutConfig(engine="vllm", python=vllm_python(), dtype="bfloat16", **PATIENT)
    written, processes = [], set()
    with open_pool(config, recipe(model(0, tied=tied)), requests, 1) as pool:
        (place,) = pool._fleet._places
        for step in range(PUBLICATIONS):
            lm = model(step, tied=tied)
            pool.publish(step, published(lm))
            (rollout,) = pool.take(step)
            assert rollout.policy_version == step
            written.append(rollout.result)
            processes.add(place.process)
            assert gap(rollout.result, lm) <= MOST_GAP
            assert gap(rollout.result, lm.bfloat16()) <= MOST_GAP
        assert (len(processes), pool.statistics().restarts) == (1, 0)
        os.kill(place.process, signal.SIGKILL)
        pool.publish(PUBLICATIONS, published(model(PUBLICATIONS - 1, tied=tied)))
        (rollout,) = pool.take(PUBLICATIONS)
        assert (place.process in processes, pool.statistics().restarts) == (False, 1)
    # Equal seeds and weights, equal answers, also of another process; other weights, others.
    assert torch.equal(rollout.result["tokens"], written[-1]["tokens"])
    assert len({str(result["tokens"].tolist()) for result in written}) == PUBLICATIONS


REWARD = """
def short(completions, **kwargs):
    return [1 / (1 + len(text)) for text in completions]
"""


def think(work: Path, lm: LlamaForCausalLM) -> int:
    tokenizer = tiny_tokenizer()
    export_model(lm, tokenizer, work / "plain")
    (work / "rewards.py").write_text(REWARD, encoding="utf-8")
    rows = [{"question": f"What is {n} + {n % 7}?", "answer": str(n + n % 7)} for n in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "rows.jsonl").write_text(lines, encoding="utf-8")
    line = command(PAGE, f"{BEGINNING} --rollouts.engine vllm")
    for theirs, ours in (
        ("SmolLM2-135M-Instruct", work / "plain"),
        ("gsm8k", work / "rows.jsonl"),
        ("function math", f"function {work / 'rewards.py'}:short"),
        (".venv-vllm/bin/python", vllm_python()),
    ):
        assert theirs in line
        line = line.replace(theirs, str(ours))
    settings = (
        *(f"--output={work}", "--thought.max-tokens=6", "--episodes.episodes=12"),
        *("--episodes.batch-size=4", "--episodes.thoughts=4", "--episodes.warmup-episodes=0"),
        *("--probe.every-steps=3", "--probe.items=4", "--engine.dtype=float32"),
        *("--optimizer.adamw.lr=1e-2", "--telemetry.wandb-mode=disabled", "--registry.no-enabled"),
    )
    return main([*shlex.split(line)[1:], *settings])


def test_a_run_that_learns_from_what_vllm_writes(tmp_path: Path) -> None:
    assert think(tmp_path, model(0, tied=True)) in (0, 3)
    summary = json.loads((tmp_path / "vllm" / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 3
    gaps, speeds = [], []
    for record in read_metrics(tmp_path / "vllm" / "metrics.jsonl"):
        if names.RL_GAP in record.metrics:
            gaps.append((record.metrics[names.RL_GAP], record.metrics[names.RL_MAX_GAP]))
            speeds.append(record.metrics[names.RL_ENGINE_SPEED])
    assert len(gaps) == 3
    assert all(0 < mean <= MOST_GAP and mean < most for mean, most in gaps), gaps
    assert all(speed > 0 for speed in speeds)


def test_a_model_that_vllm_does_not_know_is_refused_and_nothing_is_tried_again() -> None:
    config = RolloutConfig(engine="vllm", python=vllm_python(), **PATIENT)
    lm = model(0, tied=True)
    known = recipe(lm)
    other = replace(known, config=known.config.replace(type(lm).__name__, "NobodysForCausalLM"))
    with open_pool(config, other, requests, 1) as pool:
        pool.publish(0, published(lm))
        with pytest.raises(
            InputError, match=r"^vLLM \S+ cannot load a model of \['NobodysForCausalLM'\]: .*'hf'$"
        ):
            pool.take(0)
        assert pool.statistics().restarts == 0
