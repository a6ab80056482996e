"""Step 1 as a user runs it: what it leaves behind, under every launcher, resumed, elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from distforge.baking import step1
from distforge.cli import main
from distforge.evaluation.scoring import Answered, answer_questions
from distforge.models.export import export_model
from distforge.models.loading import Champion, load_champion
from distforge.registry import ModelRegistry
from distforge.reports.step1_summary import Step1Summary
from distforge.telemetry import read_metrics
from distforge.telemetry.metrics import BAKING_METRICS, TRAIN_LEARNING_RATE
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from tests.distributed.harness import run_ranks
from tests.integration.launching import ROOT, curve, run, run_two_ranks
from tests.run_size import times_the_model
from tests.tiny_models import tiny_gpt2, tiny_tokenizer


@pytest.fixture(scope="session")
def finished(work: Path) -> Path:
    """The run that made the champion on its way."""
    return work / "first" / "tiny"


def test_run_directory_is_complete(finished: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "summary.json", "report.html", "report.png"):
        assert (finished / name).stat().st_size > 0, name
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["latest"]
    assert (finished / "checkpoints" / "latest").read_text().strip() == "step_12"
    assert times_the_model(finished) <= 3
    assert list((finished / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [
        r for r in read_metrics(finished / "metrics.jsonl") if BAKING_METRICS[0] in r.metrics
    ]
    assert [r.step for r in records] == [6, 12]
    assert all(set(BAKING_METRICS) <= set(r.metrics) for r in records)


def test_summary_has_the_promised_fields(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["phase"], summary["step"], summary["steps"]) == (3, 1, 12)
    assert set(summary) == set(Step1Summary.model_fields)
    assert summary["converged"] is False
    assert summary["shortfalls"]
    assert len(summary["accuracy"]) == 7
    assert set(summary["token_usage"]) == {"thinking", "step", "mece", "falsify", "doubt"}
    for key in ("champion_accuracy", "seconds", "parameters", "config_sha256", "dataset_sha256"):
        assert key in summary
    assert Path(summary["heldout"]).is_file()


def test_lineage_is_in_the_registry(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    registry = ModelRegistry(f"sqlite:///{finished.parent / 'registry.db'}")
    chain = registry.ancestors(summary["registry_version"])
    assert [v.version.split("/")[0] for v in chain] == ["baked_reasoning", "champion"]
    assert chain[0].metrics["accuracy_overall"] == summary["accuracy_overall"]
    registry.verify(summary["registry_version"])


def test_champion_and_export_are_asked_in_one_dtype(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []

    def note(model: PreTrainedModel, *rest: Any, **settings: Any) -> list[Answered]:
        asked.append(model.dtype)
        return answer_questions(model, *rest, **settings)

    monkeypatch.setattr(step1, "answer_questions", note)
    words = ["bake", "--config", config, "--output", str(tmp_path), "--training.max-steps", "1"]
    words += ["--evaluation.heldout-questions", "7", "--evaluation.dtype", "bfloat16"]
    assert main(words) == 3
    assert asked == [torch.bfloat16] * 3  # the champion, it with prompts, and what was exported


BARE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("distforge") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for line in open(sys.argv[2]):
    row = json.loads(line)
    ids = tokenizer("Question: " + row["question"] + "\\n", return_tensors="pt").input_ids
    for _ in range(40):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    start = len(tokenizer("Question: " + row["question"] + "\\n").input_ids)
    print(json.dumps(tokenizer.decode(ids[0, start:]).split("<eos>")[0]))
"""


def test_exported_model_says_the_same_in_bare_transformers(finished: Path) -> None:
    """Argmax without a cache, one question at a time, in a process that knows no distforge."""
    samples = finished / "samples.jsonl"
    result = run([sys.executable, "-c", BARE, str(finished / "model"), str(samples)])
    assert result.returncode == 0, result.stderr
    said = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('"')]
    told = [json.loads(line)["generated"] for line in samples.read_text().splitlines()]
    assert len(said) == len(told) > 7
    for bare, ours in zip(said, told, strict=True):
        assert ours.startswith(bare) or bare == ours


def test_two_ranks_of_deepspeed_follow_one_process(tmp_path: Path, config: str) -> None:
    script = str(ROOT / "launch" / "step1.py")
    one = run([sys.executable, script, "--config", config, "--output", str(tmp_path / "one")])
    assert one.returncode == 3, one.stderr
    two = run_two_ranks(script, ["--config", config, "--output", str(tmp_path / "two")])
    assert "converged" in two.stdout, two.stdout + two.stderr
    plain, split = curve(tmp_path / "one" / "tiny"), curve(tmp_path / "two" / "tiny")
    assert plain.keys() == split.keys() == set(range(1, 13))
    # The issue allows 1e-3; summation order alone differs.
    assert max(abs(plain[step] - split[step]) for step in plain) <= 1e-3


def bake_at_zero_3(_: World, words: list[str], whole: bool) -> tuple[int, set[torch.dtype]]:
    """Exit status, and the dtypes that the champion arrived in."""
    if whole:
        EngineConfig.load_dtype = lambda *_: "float32"  # type: ignore[method-assign]
    seen = set()

    def load(*arguments: Any) -> Champion:
        champion = load_champion(*arguments)
        seen.update(parameter.dtype for parameter in champion.model.parameters())
        return champion

    step1.load_champion = load
    return main(["bake", *words]), seen


def test_a_champion_in_16_bits_is_baked_at_zero_3_as_one_in_float32(
    tmp_path: Path, work: Path, config: str
) -> None:
    champion = load_champion(str(work / "champion"))
    export_model(champion.model.bfloat16(), champion.tokenizer, tmp_path / "given")
    words = ["--config", config, f"--champion.path={tmp_path / 'given'}"]
    words += ["--engine.zero-stage=3", "--training.max-steps=2", "--evaluation.dtype=float32"]
    words += ["--evaluation.heldout-questions=7", "--evaluation.validation-questions=7"]
    for name, kinds in (("stored", {torch.float32, torch.bfloat16}), ("whole", {torch.float32})):
        given = [*words, f"--output={tmp_path / name}"]
        for status, seen in run_ranks(2, bake_at_zero_3, given, name == "whole"):
            assert (status, seen) == (3, kinds)
    for part in ("champion", "model"):
        one, two = (
            (tmp_path / name / "tiny" / part / "model.safetensors").read_bytes()
            for name in ("stored", "whole")
        )
        assert one == two, part


@pytest.mark.parametrize(("extensions", "stopped_at", "last"), [(0, 8, 12), (1, 12, 18)])
def test_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    extensions: int,
    stopped_at: int,
    last: int,
) -> None:
    from distforge.baking.supervised.trainer import PromptBakingTrainer

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    words = ["bake", "--config", config, "--keep-checkpoints"]
    words += ["--evaluation.extensions", str(extensions), "--output"]
    assert main([*words, str(straight)]) == 3
    genuine = PromptBakingTrainer._after_step

    def interrupt(trainer: PromptBakingTrainer, record: object) -> None:
        genuine(trainer, record)  # type: ignore[arg-type]
        if trainer.loop.step == stopped_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(PromptBakingTrainer, "_after_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main([*words, str(broken)])
    monkeypatch.undo()
    assert main([*words, str(broken)]) == 3
    weights = f"tiny/checkpoints/step_{last}/model.safetensors"
    assert (straight / weights).read_bytes() == (broken / weights).read_bytes()
    assert curve(straight / "tiny") == curve(broken / "tiny")


def test_a_run_that_misses_its_targets_is_extended_and_its_rate_falls_anew(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    words = ["bake", "--config", config, "--output", str(tmp_path)]
    assert main([*words, "--evaluation.extensions", "1", "--evaluation.every-steps", "100"]) == 3
    assert "training goes on to step 18" in capsys.readouterr().out
    assert json.loads((tmp_path / "tiny" / "summary.json").read_text())["steps"] == 18
    rates = {
        record.step: record.metrics[TRAIN_LEARNING_RATE]
        for record in read_metrics(tmp_path / "tiny" / "metrics.jsonl")
        if TRAIN_LEARNING_RATE in record.metrics
    }
    assert rates[12] < rates[13] > rates[18]


def test_another_model_family_works_unchanged(tmp_path: Path, config: str) -> None:
    """GPT-2 shaped, a tokenizer without thinking tokens, learned positions, AdamW."""
    directory = tmp_path / "gpt2"
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(len(tokenizer))
    model.resize_token_embeddings(len(tokenizer))
    grown = type(model)(type(model.config)(**{**model.config.to_dict(), "n_positions": 512}))
    grown.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for optimizer in ("muon_grokfast", "adamw"):
        words = ["--champion.path", str(directory), "--optimizer.name", optimizer]
        output = ["--output", str(tmp_path / f"gpt2-{optimizer}"), "--training.max-steps", "3"]
        assert main(["bake", "--config", config, *words, *output]) == 3
    vocabulary = tokenizer.__class__.from_pretrained(tmp_path / "gpt2-adamw" / "tiny" / "model")
    assert len(vocabulary.encode("<think>")) == 1


def test_dry_run_writes_nothing(tmp_path: Path, config: str, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "dry"
    words = ["--dry-run", "--engine.zero-stage", "1", "--optimizer.name", "adamw"]
    assert main(["bake", "--config", config, "--output", str(output), *words]) == 0
    printed = capsys.readouterr().out
    assert '"stage": 1' in printed
    assert "total" in printed
    assert not output.exists()


def test_champion_is_kept_and_told_apart(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    making = str(work / "making.toml")
    before = (work / "champion" / "model.safetensors").read_bytes()
    again = ["bake", "--config", making, "--output", str(tmp_path / "again"), "--dry-run"]
    assert main(again) == 0
    other = ["--champion.recipe.seed", "5", "--output", str(tmp_path / "other")]
    assert main(["bake", "--config", making, *other]) == 2
    assert "another recipe" in capsys.readouterr().err
    assert not (tmp_path / "other" / "tiny").exists()
    assert (work / "champion" / "model.safetensors").read_bytes() == before


def test_finished_run_is_not_overwritten(
    finished: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    making = str(work / "making.toml")
    assert main(["bake", "--config", making, "--output", str(work / "first")]) == 2
    assert "finished" in capsys.readouterr().err
    assert (finished / "summary.json").exists()
    shutil.copytree(finished, tmp_path / "copy" / "tiny")
    words = ["--output", str(tmp_path / "copy"), "--training.seed", "9"]
    assert main(["bake", "--config", making, *words]) == 2
    assert "another run" in capsys.readouterr().err
    assert (tmp_path / "copy" / "tiny" / "summary.json").exists()
