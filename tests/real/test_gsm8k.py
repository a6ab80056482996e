"""Step 1 on GSM8K's rows as they are published: plain, and sharded over two ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

# A directory with train.jsonl and test.jsonl.
PUBLISHED = os.environ.get("DISTFORGE_GSM8K", "")
ROWS = {"train": 40, "test": 8}
STEPS = 4


def bake(_world: World, words: list[str]) -> int:
    return main(["bake", *words])


@pytest.fixture
def words(champion: Path, tmp_path: Path) -> list[str]:
    if not PUBLISHED:
        pytest.skip("NOTHING REAL WAS TESTED: name a directory of GSM8K in DISTFORGE_GSM8K")
    data = tmp_path / "gsm8k"
    data.mkdir()
    for split, count in ROWS.items():
        lines = Path(PUBLISHED, f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        (data / f"{split}.jsonl").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
    return [
        f"--champion.path={champion}",
        f"--data.path={data}",
        f"--output={tmp_path}",
        f"--training.max-steps={STEPS}",
        "--training.batch-size=4",
        "--training.micro-batches=2",
        f"--evaluation.every-steps={STEPS}",
        "--evaluation.validation-questions=4",
        "--engine.dtype=float32",
        "--checkpoint-every=0",
        "--telemetry.wandb-mode=disabled",
        "--registry.no-enabled",
    ]


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_two_ranks_of_zero_2_lose_what_one_process_does(words: list[str], tmp_path: Path) -> None:
    assert run_ranks(1, bake, [*words, "--name=plain"], deadline_seconds=900) == [3]
    sharded = [*words, "--name=sharded", "--engine.zero-stage=2"]
    assert run_ranks(2, bake, sharded, deadline_seconds=900) == [3, 3]
    plain = losses(tmp_path / "plain")
    assert len(plain) == STEPS
    assert plain[-1] < plain[0]
    # Sums in another order; Muon's orthogonalisation makes what differs in the last bits larger.
    assert losses(tmp_path / "sharded") == pytest.approx(plain, rel=2e-3)
    summary = json.loads((tmp_path / "sharded" / "summary.json").read_text(encoding="utf-8"))
    assert summary["data_note"] == "read train; test is held out"
