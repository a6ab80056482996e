"""docs/bake-a-prompt.md: afterwards the model answers without the prompt as it did with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tomli_w

from tests.baking_cases import PROMPT, model, tokenizer, wanted
from tests.documented import command
from tests.documented_folder import run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

PAGE = "docs/bake-a-prompt.md"
QUESTION = "What is 12 + 34?"
LEARNS = {
    "data": "sums.jsonl",
    "questions": 8,
    "others": 1,
    "telemetry": {"wandb_mode": "disabled"},
    "baking": {
        "num_questions": 64,
        "heldout_questions": 8,
        "max_response_tokens": 12,
        "engine": {"dtype": "float32"},
        "training": {"max_steps": 60, "batch_size": 8, "micro_batches": 1},
        "optimizer": {"adamw": {"lr": 1e-2}},
    },
}


def test_bake_a_prompt_into_a_model(folder: Path) -> None:
    champion = folder / "path" / "to" / "model"
    shutil.rmtree(champion)
    model().save_pretrained(champion)
    tokenizer().save_pretrained(champion)
    (folder / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    sums = [{"question": f"What is {n} + {99 - n}?", "answer": "99"} for n in range(100)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    few = {"model": "M", **LEARNS}
    (folder / "few" / "bake-prompt.toml").write_text(tomli_w.dumps(few), encoding="utf-8")

    def answer(name: str) -> str:
        asked = run(folder, f'distforge ask {name} --question "{QUESTION}"')
        assert asked.returncode == 0, asked.stderr
        return asked.stdout

    assert wanted(PROMPT).split()[0] not in answer("path/to/model")
    baked = run(folder, command(PAGE, "distforge bake-prompt --model path/to/model --prompt"))
    assert baked.returncode == 0, baked.stdout + baked.stderr
    assert (folder / "runs" / "prompt" / "report.html").is_file()
    assert wanted(PROMPT).split()[0] in answer("runs/prompt")
