"""Step 2 from questions and rewards alone, on a tiny model that has never seen a thought."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distforge.cli import main
from distforge.config import load_config
from distforge.models.export import export_model
from distforge.quietstar.config import RewardConfig
from distforge.quietstar.step2_config import Step2Config
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.local import LocalPool
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.unit.rollouts import vllm_stand_in

SETTINGS = (
    *("--thought.max-tokens=6", "--episodes.episodes=8", "--episodes.batch-size=4"),
    *("--episodes.episodes-per-request=2", "--episodes.thoughts=4", "--episodes.micro-batches=2"),
    *("--episodes.warmup-episodes=0", "--probe.every-steps=1", "--probe.items=4"),
    *("--checkpoint-every=1", "--engine.dtype=float32", "--telemetry.wandb-mode=disabled"),
    *("--registry.no-enabled", "--optimizer.name=adamw", "--optimizer.adamw.lr=1e-3"),
)
REWARDS = """
import threading

def short(completions, hint, **kwargs):
    assert set(hint) <= {"a", "b"}
    return [1 / (1 + len(text)) for text in completions]

def wants(prompts, completions, solution):
    return [0.0] * len(prompts)

def same(prompts, **kwargs):
    return [0.5] * len(prompts)

def slips(prompts, **kwargs):
    raise RuntimeError("no such unit")

def unsure(prompts, **kwargs):
    return [float("nan")] * len(prompts)

def few(prompts, **kwargs):
    return [1.0]

def sleeps(prompts, **kwargs):
    threading.Event().wait()
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("rewards")
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)), tokenizer, work / "plain")
    (work / "rewards.py").write_text(REWARDS)
    rows = [
        {"question": f"What is {n} + {n % 7}?", "answer": str(n + n % 7), "hint": "ab"[n % 2]}
        for n in range(60)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "rows.jsonl").write_text(lines + lines[: lines.index("\n") + 1])
    return work


def think(given: Path, output: Path, function: str, *more: str) -> int:
    where = (f"--baked={given / 'plain'}", f"--output={output}", "--name=rl")
    data = (f"--data.path={given / 'rows.jsonl'}", "--reward.function", function)
    return main(["think", *where, *SETTINGS, *more, *data])


def test_a_run_learns_from_what_a_function_says_and_leaves_a_model(given, tmp_path) -> None:
    assert think(given, tmp_path, f"{given / 'rewards.py'}:short") in (0, 3)
    summary = json.loads((tmp_path / "rl" / "summary.json").read_text())
    assert (summary["task"], summary["steps"], summary["verdict"]) == ("reward", 2, "INCONCLUSIVE")
    low, high = summary["intervals"]["gain"]
    assert low <= summary["gain"] <= high
    assert summary["improved"] is (low > 0)
    assert [path.name for path in (tmp_path / "rl" / "checkpoints").iterdir()] == ["latest"]
    rows = [json.loads(line) for line in (tmp_path / "rl" / "samples.jsonl").open()]
    assert len(rows) == summary["items"]
    # Greedy answers keep the cap that sampling had, and their reward is that of the very text.
    assert sum(1 / (1 + len(row["generated"])) for row in rows) / len(rows) == pytest.approx(
        summary["accuracy_overall"], abs=1e-5
    )
    found: dict[str, float] = {}
    for record in read_metrics(tmp_path / "rl" / "metrics.jsonl"):
        found |= record.metrics
    assert found[names.RL["reward"]] == pytest.approx(
        next(v for k, v in found.items() if k.startswith(names.RL_REWARD_PART)), abs=1e-5
    )
    assert 0 <= found[names.RL_FINISHED] <= 1
    # The engine and the learner compute the same probabilities, end of turn included.
    assert found[names.RL_MAX_GAP] < 1e-3
    check_completions(tmp_path / "rl")


def check_completions(run: Path) -> None:
    """Of the first step: two groups, whose rewards are of the very text and whose advantages are
    what leaving each one out gives."""
    rows = [json.loads(line) for line in (run / "completions.jsonl").open()]
    assert [row["step"] for row in rows] == [1] * 8
    for group in (rows[:4], rows[4:]):
        assert len({row["prompt"] for row in group}) == 1
        rewards = [1 / (1 + len(row["completion"])) for row in group]
        for row, reward in zip(group, rewards, strict=True):
            assert list(row["rewards"].values()) == [pytest.approx(reward)]
            others = (sum(rewards) - reward) / 3
            assert row["advantage"] == pytest.approx(reward - others, abs=1e-6)
    page = (run / "report.html").read_text()
    assert rows[0]["prompt"] in page


def test_an_adapter_alone_is_trained_and_merged_into_what_is_left(given, tmp_path) -> None:
    lora = ("--adapter=lora", "--lora.rank=4", "--optimizer.adamw.lr=0.05")
    assert think(given, tmp_path, f"{given / 'rewards.py'}:short", *lora) in (0, 3)
    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (given / "plain", tmp_path / "rl" / "model")
    )
    assert before.keys() == after.keys()
    found: dict[str, float] = {}
    for record in read_metrics(tmp_path / "rl" / "metrics.jsonl"):
        found |= record.metrics
    # What is sampled from is the merged model, and with the adapter off it is what it was.
    assert found[names.RL_MAX_GAP] < 1e-3
    assert found[names.RL["kl_divergence"]] > 1e-6
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any("embed" in name or "norm" in name for name in changed)


def test_what_vllm_is_asked_and_answers_is_what_the_learner_reads(
    given, tmp_path, monkeypatch
) -> None:
    """A stand-in for vLLM, here without Ray: prompts, stops, temperature, bans and weights of every
    version are right where both sides give the tokens the same probabilities."""
    vllm_stand_in.install(monkeypatch)
    opened = []

    @contextmanager
    def here(config, make_engine, plan, batch_size):
        opened.append((config.engine, [type(r.payload[0]) for r in plan(0)]))
        ledger = Ledger(plan, batch_size, config.staleness, config.max_attempts)
        yield LocalPool(ledger, make_engine, 1)

    monkeypatch.setattr("distforge.quietstar.trainer.open_pool", here)
    monkeypatch.setattr("distforge.quietstar.rewarded.require_interpreter", lambda config: None)
    vllm = ("--rollouts.engine=vllm", "--rollouts.num-actors=1", "--optimizer.adamw.lr=0.05")
    assert think(given, tmp_path, f"{given / 'rewards.py'}:short", *vllm) in (0, 3)
    # Plain ids: the actor's interpreter has no more of distforge than it needs.
    assert opened == [("vllm", [list, list])]
    gaps = [
        record.metrics[names.RL_MAX_GAP]
        for record in read_metrics(tmp_path / "rl" / "metrics.jsonl")
        if names.RL_MAX_GAP in record.metrics
    ]
    assert len(gaps) == 2
    assert max(gaps) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "vLLM writes no thoughts in parallel over one cache"),
        (("--reward.function=math", "--thought.greedy"), "thought.greedy is True"),
        (("--reward.function=math", "--thought.temperature=0.001"), "thought.temperature 0.001"),
    ],
)
def test_what_vllm_cannot_write_is_refused_before_anything(
    tmp_path, capsys, settings, message
) -> None:
    vllm = ("--rollouts.engine=vllm", "--rollouts.num-actors=1", f"--output={tmp_path}")
    assert main(["think", "--baked=nowhere", *vllm, *settings]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "set engine to 'hf'" in said
    assert not list(tmp_path.iterdir())


def test_functions_bring_defaults_of_their_own_that_any_setting_changes() -> None:
    plain, fitted = (
        load_config(Step2Config, None, words)
        for words in (["--baked", "x"], ["--baked", "x", "--reward.function", "math"])
    )
    assert plain == Step2Config(baked="x")
    assert fitted == replace(
        Step2Config.for_rewards(), baked="x", reward=RewardConfig(function=("math",))
    )
    assert fitted.thought.closing == "learned"
    assert fitted.episodes.portions == fitted.episodes.request_size == fitted.episodes.batch_size
    words = ["--reward.function", "math", "--episodes.batch-size", "6"]
    assert load_config(Step2Config, None, words).episodes.portions == 6


def test_equal_rewards_stop_the_run_and_say_what_to_try(given, tmp_path, capsys) -> None:
    function = f"{given / 'rewards.py'}:same"
    assert think(given, tmp_path, function, "--reward.signal-steps=1") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "in 1 steps no group of 4 holds two different rewards" in said
    assert "raise episodes.thoughts" in said


@pytest.mark.parametrize(
    ("name", "message", "begun"),
    [
        ("wants", "wants the column 'solution', and the data have", False),
        ("slips", "raised RuntimeError: no such unit", True),
        ("unsure", "gave nan to row", True),
        ("few", "returned 1 values for", True),
        ("sleeps", "took more than 0.2 s for", True),
        ("absent", "has no function 'absent'", False),
    ],
)
def test_what_a_function_does_wrong(given, tmp_path, capsys, name, message, begun) -> None:
    function = f"{given / 'rewards.py'}:{name}"
    assert think(given, tmp_path, function, "--reward.deadline-seconds=0.2") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert begun or not (tmp_path / "rl").exists()


def test_questions_longer_than_the_context(given, tmp_path, capsys) -> None:
    assert think(given, tmp_path, "math", "--data.max-length=16", "--thought.max-tokens=14") == 2
    assert "questions fits" in " ".join(capsys.readouterr().err.split())


def test_no_data_are_made_up_for_a_model_that_has_none(given, tmp_path, capsys) -> None:
    where = (f"--baked={given / 'plain'}", f"--output={tmp_path}", "--name=rl")
    assert main(["think", *where, *SETTINGS, "--reward.function", "math"]) == 2
    assert "so it has no data; set data.path" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "rl").exists()
