"""Every question of a benchmark judged as lm-evaluation-harness judges it, on the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_agreement.py"
PEER = os.environ.get("DISTFORGE_LM_EVAL_PYTHON", sys.executable)
ITEMS = 8


def sums(directory: Path) -> Path:
    """Questions in GSM8K's format that a small model answers now right, now wrong."""
    directory.mkdir()
    for name, first in (("train", 3), ("test", 11)):
        rows = [
            {
                "question": f"Anna has {number} apples and buys {2 * number}. How many are that?",
                "answer": f"{number} + {2 * number} = {3 * number}\n#### {3 * number}",
            }
            for number in range(first, first + ITEMS)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return directory


def test_all_verdicts_are_the_same(champion: Path, tmp_path: Path) -> None:
    if subprocess.run([PEER, "-c", "import lm_eval"], capture_output=True).returncode:
        pytest.skip(
            "NOTHING WAS COMPARED: lm_eval is not installed; name the Python of an environment "
            "with 'lm_eval[hf]==0.4.13' in DISTFORGE_LM_EVAL_PYTHON"
        )
    command = [sys.executable, str(SCRIPT), "--model", str(champion), "--peer", PEER]
    command += ["--gsm8k", str(sums(tmp_path / "gsm8k")), "--json", str(tmp_path / "found.json")]
    command += ["--items", str(ITEMS), "--max-new-tokens", "48"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run(command, check=True, timeout=1500, env=offline)
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4
    assert {row["work"]: row["ratio"] for row in rows} == {row["work"]: 1.0 for row in rows}
