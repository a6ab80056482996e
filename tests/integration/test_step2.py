"""Step 2 as a user runs it, from the tiny run of step 1: what it leaves behind, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distforge.cli import main
from distforge.handoff.to_phase4 import find_faults
from distforge.models.export import export_model
from distforge.registry import ModelRegistry
from distforge.reports.step2_summary import Step2Summary
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import RL_METRICS
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.integration.launching import ROOT, curve, run_two_ranks
from tests.run_size import times_the_model
from tests.tiny_models import tiny_llama, tiny_tokenizer

SMALL = [
    "--thought.max-tokens=12",
    "--thought.closing=learned",
    "--episodes.episodes=8",
    "--episodes.batch-size=4",
    "--episodes.thoughts=2",
    "--episodes.episodes-per-request=2",
    "--probe.every-steps=1",
    "--probe.items=4",
    "--probe.coherence-items=2",
    "--engine.dtype=float32",
    "--telemetry.wandb-mode=disabled",
]


def think(baked: Path, output: Path, *more: str) -> int:
    return main(["think", f"--baked={baked}", f"--output={output}", "--name=rl", *SMALL, *more])


@pytest.fixture(scope="module")
def baked(work: Path) -> Path:
    return work / "first" / "tiny"


@pytest.fixture(scope="module")
def finished(baked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("step2")
    # A model of twelve steps knows nothing, so the gate is opened; it cannot become better either.
    assert think(baked, output, "--probe.min-sampled-accuracy=0") in (0, 3)
    return output / "rl"


def test_run_directory_is_complete(finished: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "summary.json", "report.html", "report.png"):
        assert (finished / name).stat().st_size > 0, name
    records = read_metrics(finished / "metrics.jsonl")
    assert [r.step for r in records if set(RL_METRICS) <= set(r.metrics)] == [1, 2]
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["latest"]
    assert times_the_model(finished) <= 3


def test_summary_has_the_promised_fields(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["phase"], summary["step"], summary["steps"]) == (3, 2, 2)
    assert set(summary) == set(Step2Summary.model_fields)
    assert summary["episodes"] == 8
    assert set(summary["controls"]) == {"own", "shuffled", "random", "filler", "none"}
    low, high = summary["intervals"]["gain"]
    assert low <= summary["gain"] <= high
    assert summary["improved"] is (low > 0)
    # On so few items nothing is judged, and it says so.
    assert summary["verdict"] == "INCONCLUSIVE"
    assert "no verdict can be given on fewer than 30" in summary["theater"]["missing"][0]


def test_what_picks_the_weights_does_not_judge_them(finished: Path) -> None:
    heldout = [json.loads(line) for line in (finished / "data/heldout.jsonl").open()]
    asked = [json.loads(line) for line in (finished / "samples.jsonl").open()]
    assert len(asked) == json.loads((finished / "summary.json").read_text())["items"]
    questions = [sorted(row["question"] for row in rows) for rows in (asked, heldout[4:])]
    assert questions[0] == questions[1]


def test_the_model_is_registered_as_child_of_the_baked_one(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    registry = ModelRegistry(f"sqlite:///{finished.parent / 'registry.db'}")
    version = summary["registry_version"]
    assert version == "rl_reasoning/1"
    assert [v.version for v in registry.ancestors(version)] == [version, "baked_reasoning/1"]
    assert registry.by_alias("rl_reasoning", "rl-latest").version == version


def test_bare_transformers_load_the_model_and_phase_4_refuses_it(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6]])).logits).all()
    faults = find_faults(finished / "model")
    for part in ("verdict is 'INCONCLUSIVE'", "baked_accuracy is 0."):
        assert [fault for fault in faults if part in fault], faults
    assert len(faults) == 2


def test_the_baked_accuracy_is_step_1s_and_what_was_measured_here_has_a_name_of_its_own(
    finished: Path, baked: Path
) -> None:
    step1 = json.loads((baked / "summary.json").read_text())
    step2 = json.loads((finished / "summary.json").read_text())
    stated = json.loads((finished / "model" / "handoff.json").read_text())
    assert stated["baked_accuracy"] == step2["baked_accuracy"] == step1["accuracy_overall"]
    assert stated["baked_measured_on"] == {
        "n": step1["questions"],
        "dataset_sha256": step1["dataset_sha256"],
    }
    assert step1["model_sha256"] == step2["baked_sha256"] == stated["lineage"]["baked_sha256"]
    assert stated["lineage"]["champion_sha256"] == step1["champion_sha256"]
    assert stated["measured_on"]["n"] == step2["items"] != step1["questions"]
    assert stated["before_accuracy"] == step2["before_accuracy"]
    assert [stated["gain"], stated["gain_interval"]] == [step2["gain"], step2["intervals"]["gain"]]


def test_a_finished_run_is_not_repeated(finished: Path, baked: Path, capsys) -> None:
    assert think(baked, finished.parent, "--probe.min-sampled-accuracy=0") == 2
    assert "holds this run, finished" in capsys.readouterr().err


def test_a_model_that_is_baked_too_little_is_refused(baked: Path, tmp_path: Path, capsys) -> None:
    assert think(baked, tmp_path) == 2
    assert "below probe.min_sampled_accuracy (60%)" in capsys.readouterr().err
    assert not (tmp_path / "rl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reward.kind=prediction_gain"], "'text' goes with 'prediction_gain'"),
        (["--positions.kind=all"], "set it to 'answer'"),
        (["--task=text", "--reward.kind=prediction_gain"], "text.path is empty"),
        (["--rollouts.address=10.0.0.1:6379"], "uses no cluster"),
        (["--episodes.thoughts=1", "--probe.min-sampled-accuracy=0"], "at least 2 thoughts"),
    ],
)
def test_bad_settings(baked: Path, tmp_path: Path, capsys, more, message) -> None:
    assert think(baked, tmp_path, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rl").exists()


def test_a_model_without_thinking_tokens_is_refused(tmp_path: Path, capsys) -> None:
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "plain")
    assert think(tmp_path / "plain", tmp_path) == 2
    assert "the tokenizer has no <think>" in capsys.readouterr().err


def test_a_dry_run_does_nothing(baked: Path, tmp_path: Path, capsys) -> None:
    assert think(baked, tmp_path, "--dry-run") == 0
    assert "2 steps of 4 episodes, 2 thoughts each" in capsys.readouterr().out
    assert not (tmp_path / "rl").exists()


def test_free_text_runs_to_its_report_and_is_reproducible(baked: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    source = ROOT / "README.md"
    corpus.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    settings = [
        "--task=text",
        f"--text.path={corpus}",
        "--text.tokens=24",
        "--text.heldout-fraction=0.3",
        "--text.max-items=8",
        "--reward.kind=prediction_gain",
        "--positions.kind=interval",
        "--positions.interval=6",
        "--positions.horizon=2",
        "--thought.max-tokens=3",
        "--thought.closing=fixed",
    ]
    for name in ("one", "two"):
        assert think(baked, tmp_path / name, *settings) in (0, 3)
    summary = json.loads((tmp_path / "one" / "rl" / "summary.json").read_text())
    assert summary["task"] == "text"
    assert set(summary["bits"]) == {
        f"{model}_{how}" for model in ("baked", "trained") for how in ("with_thoughts", "without")
    }
    assert (tmp_path / "one" / "rl" / "report.html").stat().st_size > 0
    # The mixing head is drawn from the seed of the configuration, and trained alike.
    files = ("model.safetensors", "mixing_head.safetensors")
    for file in files:
        one, two = ((tmp_path / n / "rl" / "model" / file).read_bytes() for n in ("one", "two"))
        assert one == two, file


def think_on_rank(_world: World, words: list[str]) -> int:
    return main(["think", *words])


# By day the launcher is left to step 1, and ranks are forked.
@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_two_ranks_of_deepspeed_follow_one_process(
    baked: Path, tmp_path: Path, launched: bool
) -> None:
    settings = [
        f"--baked={baked}",
        "--name=rl",
        *SMALL,
        "--probe.min-sampled-accuracy=0",
        "--episodes.micro-batches=2",
        "--screening.items=8",
    ]
    words = [*settings, f"--output={tmp_path / 'one'}"]
    assert run_ranks(1, think_on_rank, words)[0] in (0, 3)
    words = [*settings, "--engine.zero-stage=3", f"--output={tmp_path / 'two'}"]
    if launched:
        two = run_two_ranks(str(ROOT / "launch" / "step2.py"), words)
        assert "the baked model: gain" in two.stdout, two.stdout + two.stderr
    else:
        assert set(run_ranks(2, think_on_rank, words)) <= {0, 3}
    plain, split = curve(tmp_path / "one" / "rl"), curve(tmp_path / "two" / "rl")
    assert plain.keys() == split.keys() == {1, 2}
    assert max(abs(plain[step] - split[step]) for step in plain) <= 1e-3
    kept = [json.loads((tmp_path / n / "rl" / "screened.json").read_text()) for n in ("one", "two")]
    assert kept[0] == kept[1]
