"""Step 2 from questions and rewards alone, on a tiny model that has never seen a thought."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.models.export import export_model
from distforge.telemetry import metrics as names
from distforge.telemetry import read_metrics
from tests.tiny_models import tiny_llama, tiny_tokenizer

SETTINGS = (
    *("--thought.max-tokens=6", "--episodes.episodes=8", "--episodes.batch-size=4"),
    *("--episodes.episodes-per-request=2", "--episodes.thoughts=4", "--episodes.micro-batches=2"),
    *("--episodes.warmup-episodes=0", "--probe.every-steps=1", "--probe.items=4"),
    *("--checkpoint-every=1", "--engine.dtype=float32", "--telemetry.wandb-mode=disabled"),
    *("--registry.no-enabled", "--optimizer.name=adamw", "--optimizer.adamw.lr=1e-3"),
)
REWARDS = """
def short(completions, hint, **kwargs):
    assert set(hint) <= {"a", "b"}
    return [1 / (1 + len(text)) for text in completions]

def wants(prompts, completions, solution):
    return [0.0] * len(prompts)

def same(prompts, **kwargs):
    return [0.5] * len(prompts)

def slips(prompts, **kwargs):
    raise RuntimeError("no such unit")
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
    assert (tmp_path / "rl" / "report.html").stat().st_size > 0


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
        ("absent", "has no function 'absent'", False),
    ],
)
def test_what_a_function_does_wrong(given, tmp_path, capsys, name, message, begun) -> None:
    assert think(given, tmp_path, f"{given / 'rewards.py'}:{name}") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert begun or not (tmp_path / "rl").exists()


def test_questions_longer_than_the_context(given, tmp_path, capsys) -> None:
    assert think(given, tmp_path, "math", "--data.max-length=16", "--thought.max-tokens=14") == 2
    assert "questions fits" in " ".join(capsys.readouterr().err.split())
