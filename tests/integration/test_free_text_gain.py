"""A run of step 2 on free text that trained nothing, or next to nothing, shows no gain."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from distforge.cli import main
from distforge.models.export import export_model
from tests.thinking_cases import thinking_pair

WORDS = (
    "add",
    "the",
    "units",
    "then",
    "tens",
    "cups",
    "are",
    "red",
    "number",
    "next",
    "step",
    "comes",
)
SETTINGS = (
    *("--task=text", "--reward.kind=prediction_gain", "--text.tokens=16"),
    *("--text.heldout-fraction=0.5", "--positions.kind=interval", "--positions.interval=4"),
    *("--positions.horizon=2", "--thought.max-tokens=3", "--probe.items=8"),
    *("--probe.coherence-items=2", "--episodes.batch-size=4", "--episodes.episodes-per-request=4"),
    *("--episodes.thoughts=2", "--checkpoint-every=0", "--engine.dtype=float32"),
    *("--telemetry.wandb-mode=disabled", "--registry.no-enabled", "--optimizer.name=adamw"),
    "--episodes.warmup-episodes=0",
)
# At the full learning rate: after two steps a model predicts better, with thoughts and without.
BARELY = {
    "two steps": ("--episodes.episodes=8",),
    "no learning rate": ("--episodes.episodes=80", "--optimizer.adamw.lr=1e-12"),
}


def write_corpus(directory: Path, documents: int, seed: int) -> None:
    """Short documents of the tokenizer's own words."""
    draw = random.Random(seed)
    directory.mkdir(parents=True)
    for number in range(documents):
        text = " ".join(draw.choice(WORDS) for _ in range(14))
        (directory / f"{number}.txt").write_text(text, encoding="utf-8")


def run(work: Path, documents: int, seed: int, words: tuple[str, ...]) -> dict[str, Any]:
    """The summary of a run whose model, text and sampling are drawn from ``seed``."""
    model, tokenizer = thinking_pair(seed=seed)
    export_model(model.lm, tokenizer, work / "baked")
    write_corpus(work / "corpus", documents, seed)
    given = (f"--baked={work / 'baked'}", f"--text.path={work / 'corpus'}", f"--output={work}")
    seeds = (f"--seed={seed}", f"--episodes.seed={seed}")
    assert main(["think", *given, *seeds, *SETTINGS, *words]) == 3
    summary: dict[str, Any] = json.loads((work / "step2" / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 3))])
@pytest.mark.parametrize("barely", sorted(BARELY))
def test_hardly_any_training_is_no_gain(tmp_path: Path, barely: str, seed: int) -> None:
    summary = run(tmp_path, 90, seed, BARELY[barely])
    assert not summary["improved"]
    assert summary["note"] == ""
    low, high = summary["intervals"]["gain"]
    assert low <= summary["gain"] <= high
    bits = summary["bits"]
    # With thoughts on both sides, and without on both; places have equally many tokens.
    for name, how in (("gain", "with_thoughts"), ("gain_without", "without")):
        saved = bits[f"baked_{how}"] - bits[f"trained_{how}"]
        assert summary[name] == pytest.approx(saved, abs=1e-5)


def test_few_documents_carry_no_interval(tmp_path: Path, capsys) -> None:
    summary = run(tmp_path, 12, 0, BARELY["two steps"])
    assert summary["intervals"]["gain"] == [None, None]
    assert not summary["improved"]
    assert "carry no interval" in summary["note"]
    assert "give at least 20" in " ".join(capsys.readouterr().out.split())
    stated = json.loads((tmp_path / "step2" / "model" / "handoff.json").read_text())
    assert stated["gain_interval"] is None
    assert "carry no interval" in (tmp_path / "step2" / "report.html").read_text()
