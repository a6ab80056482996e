"""Every command on a real model: SmolLM2-135M-Instruct (Llama, ChatML, tied, grouped heads)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distforge.baking import PromptBakingConfig
from distforge.baking.prompt.sizing import sized
from distforge.cli import main
from distforge.evaluation.generation import generate
from distforge.models.loading import load_champion
from distforge.registry.manifest import verify_manifest
from distforge.training.distributed import World
from tests.tiny_models import tiny_tokenizer

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

END_OF_TURN = 2
ROWS = (
    ("Anna has 3 apples and buys 4 more. How many has she?", "3 + 4 = 7\n#### 7"),
    ("A box holds 6 eggs. How many eggs are in 5 boxes?", "6 * 5 = 30\n#### 30"),
    ("Tom had 9 pens and lost 2. How many are left?", "9 - 2 = 7\n#### 7"),
    ("What is half of 18?", "18 / 2 = 9\n#### 9"),
)
QUIET = ["--telemetry.wandb-mode", "disabled", "--registry.no-enabled"]


def came_back_whole(model: Path) -> None:
    """Bare transformers reads what distforge does; dtype and stops are the champion's."""
    bare = AutoModelForCausalLM.from_pretrained(model)
    assert bare.dtype == torch.bfloat16
    assert {weight.dtype for weight in load_file(model / "model.safetensors").values()} == {
        torch.bfloat16
    }
    stops = bare.generation_config.eos_token_id
    assert END_OF_TURN in (stops if isinstance(stops, list) else [stops])
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.chat_template
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    ours = load_champion(str(model)).model
    with torch.no_grad():
        assert torch.equal(bare.float()(ids).logits, ours(ids).logits)


def test_the_imported_champion_answers(champion: Path) -> None:
    verify_manifest(champion)
    record = json.loads((champion / "champion.json").read_text())
    assert (record["architecture"], record["quantization"]) == ("llama", "Q4_1")
    came_back_whole(champion)

    loaded = load_champion(str(champion))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=False
    )
    (answer,) = generate(loaded.model, loaded.tokenizer, [asked], 16, 1)
    assert answer.text.strip() == "The capital of France is Paris."
    assert answer.finished


def test_a_tokenizer_of_another_model_is_told_of(
    champion: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_champion(str(champion))
    assert "another model's" not in caplog.text
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(champion / name)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_champion(str(tmp_path))
    assert "its tokenizer is another model's" in caplog.text


def test_a_bake_without_settings_is_sized_for_it(champion: Path) -> None:
    loaded = load_champion(str(champion))
    world = World(0, 0, 1, torch.device("cpu"))
    config = sized(PromptBakingConfig(), loaded.model, loaded.tokenizer, world, None)
    assert config.questions == "everyday"
    # What a model of a million parameters is given, 6,400 rows of 160 tokens, would take hours.
    assert config.training.max_steps * config.training.batch_size <= 500
    assert config.max_response_tokens <= 64


def test_it_is_asked_gsm8k_in_its_own_dtype(champion: Path, tmp_path: Path, capsys) -> None:
    rows = [json.dumps({"question": q, "answer": a}) for q, a in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    words = ["--model", str(champion), "--benchmarks.gsm8k", str(tmp_path / "rows.jsonl")]
    words += ["--benchmarks.gsm8k-shots", "0", "--benchmarks.max-new-tokens", "48"]
    words += ["--output", str(tmp_path / "out")]
    assert main(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    assert "gsm8k" in printed
    assert f" {len(ROWS)} " in printed


def test_a_few_steps_of_step_1(champion: Path, tmp_path: Path) -> None:
    words = ["--champion.path", str(champion), "--name", "step1", "--output", str(tmp_path)]
    words += ["--data.num-examples", "70", "--data.max-length", "192"]
    words += ["--training.max-steps", "2"]
    words += ["--training.batch-size", "2", "--training.micro-batches", "1"]
    words += ["--evaluation.every-steps", "2", "--evaluation.validation-questions", "7"]
    words += ["--checkpoint-every", "0", *QUIET]
    assert main(["bake", *words]) in (0, 3)
    lines = [json.loads(x) for x in (tmp_path / "step1" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 2
    # A pretrained model is far from chance, log 49,152 = 10.8.
    assert all(0 < loss < 5 for loss in losses)
    came_back_whole(tmp_path / "step1" / "model")


def test_a_few_steps_of_baking_a_prompt(champion: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("You are a pirate. Answer in one short sentence.\n")
    words = ["--model", str(champion), "--prompt", str(tmp_path / "prompt.txt")]
    words += ["--name", "prompt", "--output", str(tmp_path), "--questions", "2", "--others", "0"]
    words += ["--baking.num-questions", "8", "--baking.heldout-questions", "2"]
    words += ["--baking.max-response-tokens", "16", "--baking.training.max-steps", "6"]
    words += ["--baking.training.batch-size", "4", "--baking.training.micro-batches", "1"]
    words += ["--baking.evaluate-every", "6", *QUIET]
    assert main(["bake-prompt", *words]) == 0
    (report,) = json.loads((tmp_path / "prompt" / "summary.json").read_text())["reports"]
    assert report["kl_after"] < report["kl_before"]
    came_back_whole(tmp_path / "prompt" / "model")
