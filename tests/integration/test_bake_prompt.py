"""``distforge bake-prompt`` and step 1's modes, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distforge.cli import main
from distforge.data import STRATEGY_PROMPTS, write_examples
from distforge.registry import ModelRegistry
from distforge.registry.manifest import verify_manifest
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import PROMPT_HELDOUT_KL, TRAIN_LOSS
from tests.baking_cases import examples, model, tokenizer
from tests.run_size import times_the_model

COT, MECE = (STRATEGY_PROMPTS[s] for s in ("chain_of_thought", "mece_decomposition"))
BAKING = """
num_questions = 16
heldout_questions = 4
max_response_tokens = {tokens}
evaluate_every = 4
[{section}engine]
dtype = "float32"
[{section}lora]
rank = 4
[{section}training]
max_steps = 8
batch_size = 8
micro_batches = 2
[{section}optimizer.adamw]
lr = 2e-3
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bake_prompt")


@pytest.fixture(scope="module")
def settings(root: Path) -> list[str]:
    """Words that every command here begins with: a champion that follows prompts, and data."""
    champion, data = root / "follower", root / "prompt-data.jsonl"
    model().save_pretrained(champion)
    tokenizer().save_pretrained(champion)
    write_examples(examples(), data)
    path = root / "prompt.toml"
    path.write_text(
        f'model = "{champion}"\ndata = "{data}"\nquestions = 3\nothers = 1\n'
        '[telemetry]\nwandb_mode = "disabled"\n'
        "[baking]" + BAKING.format(section="baking.", tokens=12)
    )
    return ["bake-prompt", "--config", str(path)]


@pytest.fixture(scope="module")
def prompt(root: Path) -> Path:
    path = root / "cot.txt"
    path.write_text(COT + "\n")
    return path


@pytest.fixture(scope="module")
def finished(root: Path, settings: list[str], prompt: Path) -> Path:
    output = root / "baked"
    assert main([*settings, "--prompt", str(prompt), "--output", str(output)]) == 0
    return output / "prompt"


def test_the_run_directory_is_complete(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    (report,) = summary["reports"]
    assert report["prompt"] == COT
    assert report["strategy"] == "chain_of_thought"
    assert report["kl_after"] < report["kl_before"]
    assert set(report["conditions"]) == {"unprompted", "prompted", "baked", "baked_prompted"}
    assert len(report["forgetting"]) == 6
    verify_manifest(finished / "model")
    AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.eos_token_id is not None
    records = read_metrics(finished / "metrics.jsonl")
    kl = {r.step: r.metrics[PROMPT_HELDOUT_KL] for r in records if PROMPT_HELDOUT_KL in r.metrics}
    assert list(kl) == [0, 4, 8]
    assert kl[8] < kl[0]
    assert sum(TRAIN_LOSS in r.metrics for r in records) == 8
    bake = finished / "bakes" / "bake"
    assert (bake / "adapter" / "adapter_model.safetensors").is_file()
    assert not list((bake / "checkpoints").glob("step_*")), "the adapter is what they led to"
    assert times_the_model(finished) <= 3
    assert "chain_of_thought" in (finished / "report.html").read_text()


def test_lineage_is_in_the_registry(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    registry = ModelRegistry(f"sqlite:///{finished.parent / 'registry.db'}")
    chain = registry.ancestors(summary["registry_version"])
    assert [v.version.split("/")[0] for v in chain] == ["baked_prompt", "champion"]
    registry.verify(summary["registry_version"])


def test_an_adapter_is_merged_at_another_strength(
    finished: Path, tmp_path: Path, settings: list[str]
) -> None:
    adapter = finished / "bakes" / "bake" / "adapter"
    kl = {}
    for strength in ("0.0", "0.5"):
        output = tmp_path / f"strength-{strength}"
        words = ["--adapter", str(adapter), "--strength", strength, "--output", str(output)]
        main([*settings, *words])
        summary = json.loads((output / "prompt" / "summary.json").read_text())
        kl[strength] = summary["reports"][0]["kl_after"]
        assert not (output / "prompt" / "bakes").exists()
    whole = json.loads((finished / "summary.json").read_text())["reports"][0]
    assert kl["0.0"] == pytest.approx(whole["kl_before"], rel=1e-5)
    assert kl["0.5"] < kl["0.0"]
    assert kl["0.5"] != pytest.approx(whole["kl_after"], rel=1e-3)


def test_strength_counted_in_answers(finished: Path, tmp_path: Path, settings: list[str]) -> None:
    check = tmp_path / "mine.py"
    check.write_text("def starts(question, answer):\n    return answer.startswith('cc')\n")
    adapter = finished / "bakes" / "bake" / "adapter"
    output = tmp_path / "graded"
    words = ["--adapter", str(adapter), "--strength", "0.5", "--graded", "--output", str(output)]
    main([*settings, *words, "--check", f"{check}:starts"])
    summary = json.loads((output / "prompt" / "summary.json").read_text())
    grades, (report,) = summary["grades"], summary["reports"]
    assert grades["questions"] == 20
    assert grades["strengths"][0] < report["strength"] < grades["strengths"][-1]


def test_two_prompts_are_baked_in_sequence(
    tmp_path: Path, settings: list[str], prompt: Path
) -> None:
    second = tmp_path / "mece.txt"
    second.write_text(MECE)
    output = tmp_path / "sequence"
    words = ["--prompt", str(prompt), str(second), "--output", str(output)]
    main([*settings, *words])
    summary = json.loads((output / "prompt" / "summary.json").read_text())
    matrix = summary["forgetting"]
    assert matrix["prompts"] == [COT, MECE]
    assert [len(row) for row in matrix["kl"]] == [2, 2, 2]
    assert [r["prompt"] for r in summary["reports"]] == [COT, MECE]
    # Both reports are of the model that both prompts were baked into.
    assert summary["reports"][0]["kl_after"] == pytest.approx(matrix["kl"][2][0], rel=1e-4)


def test_rounds_of_pursuit(tmp_path: Path, settings: list[str], prompt: Path) -> None:
    output = tmp_path / "pursuit"
    words = ["--prompt", str(prompt), "--rounds", "2", "--output", str(output)]
    main([*settings, *words, "--baking.max-drift", "100"])
    summary = json.loads((output / "prompt" / "summary.json").read_text())
    assert len(summary["pursuit"]["drift"]) == 2
    assert summary["pursuit"]["held_back"] is False


def test_bad_input_is_one_error_and_nothing_written(
    tmp_path: Path, settings: list[str], prompt: Path, finished: Path, capsys: pytest.CaptureFixture
) -> None:
    empty, long, binary = tmp_path / "empty.txt", tmp_path / "long.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    long.write_text("think " * 2000)
    binary.write_bytes(b"\xff\xfe\xfa")
    adapter = str(finished / "bakes" / "bake" / "adapter")
    other = str(finished / "model")
    output = tmp_path / "bad"
    for words, message in (
        (["--prompt", str(empty)], "empty.txt is empty"),
        (["--prompt", str(long)], "context is 128"),
        (["--prompt", str(binary)], "binary.txt cannot be read"),
        (["--prompt", str(tmp_path / "none.txt")], "none.txt cannot be read"),
        (["--prompt", str(prompt), "--strategy", "luck"], "strategy is 'luck'"),
        (["--prompt", str(prompt), "--strength", "2"], "strength is 2.0"),
        (["--prompt", str(prompt), "--rounds", "0"], "rounds 0"),
        (["--prompt", str(prompt), "--baking.beta", "1.5"], "beta is 1.5"),
        (["--prompt", str(prompt), str(prompt)], "each once"),
        ([], "0 prompt files"),
        (["--adapter", adapter, "--model", other], "belongs to another model"),
        (["--adapter", str(tmp_path)], "no baked prompt that can be read"),
    ):
        capsys.readouterr()
        assert main([*settings, *words, "--output", str(output)]) == 2, words
        told = capsys.readouterr()
        assert message in told.err, words
        assert "Traceback" not in told.err
        assert not output.exists(), words


@pytest.mark.parametrize("mode", ["prompt", "both"])
def test_step_1_bakes_the_seven_prompts(tmp_path: Path, config: str, mode: str) -> None:
    path = tmp_path / f"{mode}.toml"
    text = (
        Path(config)
        .read_text(encoding="utf-8")
        .replace('name = "tiny"', f'name = "tiny"\nmode = "{mode}"')
    )
    path.write_text(text + "[prompt_baking]" + BAKING.format(section="prompt_baking.", tokens=24))
    output = tmp_path / f"mode-{mode}"
    assert main(["bake", "--config", str(path), "--output", str(output)]) == 3
    run = output / "tiny"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mode"] == mode
    # A champion of 30 steps hardly reads its prompt: that something was baked in is all there is.
    assert summary["prompt_kl_after"] != summary["prompt_kl_before"] > 0
    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (run / "champion", run / "model")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert summary["steps"] == (12 if mode == "both" else 0)
    assert (run / "prompt" / "together" / "adapter" / "adapter_config.json").is_file()
    verify_manifest(run / "model")
    assert (run / "report.html").is_file()
