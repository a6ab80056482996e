"""Prints what three short runs compute, as hashes: a change that should change nothing proves it.

    python tests/same_bits.py [WORK]        # before and after; the lines must be equal

Makes a tiny champion, bakes it for 20 steps (step 1), teaches it to think for 5 (step 2) and bakes
a prompt for 20, each through the command line with one thread. For each it prints the sha256 of the
losses and all else that was computed into ``metrics.jsonl``, of the weights that training ended
with, and of every byte of the exported model (of the best weights, which may be the first). Equal
lines on one processor and torch mean equal arithmetic; lines of two processors may differ.

WORK is an empty or absent directory to leave the runs in; by default a temporary one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from distforge.cli import main

STEP_1 = """
name = "step1"
checkpoint_every = 8
keep_checkpoints = true
[champion]
path = "champion"
make = true
[champion.recipe]
num_examples = 1400
[champion.recipe.architecture]
hidden_size = 64
num_layers = 2
num_heads = 4
num_kv_heads = 2
intermediate_size = 128
[champion.recipe.training]
max_steps = 150
batch_size = 16
micro_batches = 2
[champion.recipe.optimizer.muon_grokfast]
muon_lr = 0.02
adamw_lr = 3e-3
[data]
num_examples = 560
[training]
max_steps = 20
batch_size = 8
micro_batches = 2
[optimizer.muon_grokfast]
muon_lr = 0.01
adamw_lr = 2e-3
[engine]
dtype = "float32"
[evaluation]
every_steps = 7
validation_questions = 14
[telemetry]
wandb_mode = "disabled"
"""
STEP_2 = [
    "think",
    "--baked=step1",
    "--name=step2",
    "--output=.",
    "--thought.max-tokens=24",
    "--thought.closing=learned",
    "--episodes.episodes=40",
    "--episodes.batch-size=8",
    "--episodes.warmup-episodes=0",
    "--episodes.thoughts=4",
    "--episodes.episodes-per-request=4",
    "--episodes.micro-batches=2",
    "--probe.every-steps=2",
    "--probe.items=8",
    "--probe.coherence-items=4",
    "--probe.min-sampled-accuracy=0",
    "--checkpoint-every=2",
    "--keep-checkpoints",
    "--engine.dtype=float32",
    "--telemetry.wandb-mode=disabled",
]
PROMPT = """
model = "step1/model"
data = "step1/data"
name = "prompt"
questions = 3
others = 1
[baking]
num_questions = 16
heldout_questions = 4
max_response_tokens = 16
evaluate_every = 6
[baking.engine]
dtype = "float32"
[baking.lora]
rank = 4
[baking.training]
max_steps = 20
batch_size = 8
micro_batches = 2
[baking.optimizer.adamw]
lr = 2e-3
[telemetry]
wandb_mode = "disabled"
"""
# What a clock has a part in; everything else in ``metrics.jsonl`` is arithmetic.
_TIMED = re.compile("time|second")
# The list of what else is hashed, and what the champion's making took.
NOT_CONTENT = ("manifest.json", "champion.json")


def digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:32]


def losses(run: Path) -> tuple[int, str]:
    """How many optimizer steps were recorded, and the hash of all that they computed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in sorted(row) if not _TIMED.search(key)} for row in rows]
    steps = {row["step"] for row in rows if "train/loss" in row or "rl/policy_loss" in row}
    return len(steps), digest([json.dumps(row).encode() for row in kept])


def export(model: Path) -> str:
    files = sorted(p for p in model.rglob("*") if p.is_file() and p.name not in NOT_CONTENT)
    return digest([p.name.encode() + b"\0" + p.read_bytes() for p in files])


def last_checkpoint(run: Path) -> str:
    """The weights that training ended with: an export holds the best, which may be the first."""
    checkpoints = run / "checkpoints"
    name = (checkpoints / "latest").read_text().strip()
    return digest([(checkpoints / name / "model.safetensors").read_bytes()])


COMMANDS = {
    "step1": ["bake", "--config=step1.toml", "--output=."],
    "step2": STEP_2,
    "prompt": ["bake-prompt", "--config=prompt.toml", "--prompt=prompt.txt", "--output=."],
}


def run(work: Path) -> list[str]:
    # Names relative to one directory: what an export says of where it came from is then the same.
    os.chdir(work)
    torch.set_num_threads(1)
    Path("step1.toml").write_text(STEP_1, encoding="utf-8")
    Path("prompt.toml").write_text(PROMPT, encoding="utf-8")
    Path("prompt.txt").write_text(
        "Think step by step, and check each step before the next.\n", encoding="utf-8"
    )
    lines = []
    for name, words in COMMANDS.items():
        status = main(words)
        # 3: twenty steps meet no goal.
        if status not in (0, 3):
            raise SystemExit(f"{' '.join(words)} exited with {status}")
        steps, computed = losses(Path(name))
        lines.append(f"{name}: losses of {steps} steps  {computed}")
        if name != "prompt":
            lines.append(f"{name}: weights at the end  {last_checkpoint(Path(name))}")
        lines.append(f"{name}: export  {export(Path(name, 'model'))}")
    return [f"champion: export  {export(Path('champion'))}", *lines]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        place = Path(sys.argv[1]).absolute()
        place.mkdir(parents=True)
        found = run(place)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = run(Path(temporary))
    print("\n".join(found))
