"""The folder that README and docs speak of: a checkout in which `make run` was given before.

Commands run in it as they are written, and take seconds instead of hours: every file of
``configs/`` extends the shipped one of its name with fewer steps, a command that is given no
configuration gets one of few steps, and the models that the texts name are tiny ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmark_files import ARC_ROWS, GSM8K_ROWS, write_lines
from tests.documented import ROOT
from tests.foreign_tokenizers import CHATML
from tests.shared import build_once
from tests.tiny_models import tiny_llama, tiny_tokenizer

SERVER_PYTHON = ROOT / ".venv-server" / "bin" / "python"
CHAT_MODEL = "SmolLM2-135M-Instruct"
# Names that stand for a model of a reader's own.
THE_BAKED = ("M", "path/to/model")

_TRAINING = {"max_steps": 8, "batch_size": 8, "micro_batches": 2}
_QUIET = {"wandb_mode": "disabled"}
_CHAMPION = {
    "num_examples": 140,
    "architecture": {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "intermediate_size": 64,
    },
    "training": {**_TRAINING, "max_steps": 16},
}
_STEP1: dict[str, Any] = {
    "checkpoint_every": 4,
    "data": {"num_examples": 350},
    "training": _TRAINING,
    "evaluation": {
        "every_steps": 8,
        "validation_questions": 7,
        "heldout_questions": 14,
        "extensions": 0,  # nothing is learned in so few steps, nor in half as many again
    },
    "telemetry": _QUIET,
}
_STEP2: dict[str, Any] = {
    "checkpoint_every": 1,
    "thought": {"max_tokens": 8},
    "episodes": {
        "episodes": 8,
        "batch_size": 4,
        "thoughts": 4,
        "episodes_per_request": 2,
        "micro_batches": 2,
        "warmup_episodes": 0,
    },
    "probe": {
        "every_steps": 2,
        "items": 4,
        "exam_items": 8,
        "coherence_items": 1,
        "min_sampled_accuracy": 0.0,
    },
    "telemetry": _QUIET,
}
_BAKE_PROMPT: dict[str, Any] = {
    "questions": 3,
    "others": 1,
    "baking": {
        "num_questions": 16,
        "heldout_questions": 4,
        "max_response_tokens": 8,
        "training": _TRAINING,
    },
    "telemetry": _QUIET,
}
# By command: what one that is given no --config takes instead of the defaults.
_FEW = {"think": _STEP2, "bake-prompt": {"model": "M", **_BAKE_PROMPT}}
_PROGRAM = """\
#!/bin/sh
few="{few}/$1.toml"
for word; do case "$word" in --config*) few= ;; esac; done
if [ -f "$few" ]; then set -- "$@" --config "$few"; fi
exec "{python}" -m distforge "$@"
"""


def documented_folder(destination: Path) -> Path:
    """A copy of the folder, ``destination``, to work in."""
    shutil.copytree(build_once("documented", _make), destination, symlinks=True)
    _write_programs(destination)
    return destination


def environment(folder: Path) -> dict[str, str]:
    """As a reader's shell has it who works in the folder, with what is installed on the path."""
    path = (str(folder / ".venv" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def run(folder: Path, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command line in the folder."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**environment(folder), **options.pop("environment", {})},
        capture_output=True,
        text=True,
        timeout=900,
        **({"stdin": subprocess.DEVNULL} | options),
    )


def _make(folder: Path) -> None:
    (folder / "configs").mkdir()
    for shipped in (ROOT / "configs").glob("*.toml"):
        few: dict[str, Any] = {"champion": {"recipe": _CHAMPION}}
        if shipped.stem != "champion_25m":
            few |= _STEP1
        if "[step2]" in shipped.read_text(encoding="utf-8"):
            step2_data = {"num_examples": 350, "difficulties": [1]}
            few["step2"] = {**_STEP2, "data": step2_data, "screening": {"items": 0}}
        few = {"extends": str(shipped), **few}
        (folder / "configs" / shipped.name).write_text(tomli_w.dumps(few), encoding="utf-8")
    (folder / "few").mkdir()
    for name, few in _FEW.items():
        (folder / "few" / f"{name}.toml").write_text(tomli_w.dumps(few), encoding="utf-8")
    _copy_checkout(folder)
    _write_programs(folder)
    _write_data(folder)
    _run_before(folder)
    for name in THE_BAKED:
        shutil.copytree(folder / "runs" / "quick" / "model", folder / name)
    _add_tags(folder / "M", "[T]", "[/T]")
    shutil.copytree(folder / "champions" / "quick", folder / "C")
    shutil.copytree(folder / "runs" / "quick" / "data", folder / "D")


def _copy_checkout(folder: Path) -> None:
    shutil.copytree(ROOT / "launch", folder / "launch")
    hosts = folder / "launch" / "hostfile.example"
    text = hosts.read_text(encoding="utf-8")
    hosts.write_text(text.replace("slots=8", "slots=1"), encoding="utf-8")
    for name in ("Makefile", "setup.py", "pyproject.toml", "csrc"):
        os.symlink(ROOT / name, folder / name)
    for lock in ROOT.glob("requirements*.lock"):
        os.symlink(lock, folder / lock.name)


def _write_programs(folder: Path) -> None:
    """What `make setup` leaves: its programs start those of this environment."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    program = _PROGRAM.format(few=folder / "few", python=sys.executable)
    for path, text in ((programs / "distforge", program), (programs / "python", python)):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    for stamp in (".dependencies-installed", ".package-installed"):
        (folder / ".venv" / stamp).touch()


def _write_data(folder: Path) -> None:
    for name in ("prompt.txt", "p.txt", "a.txt", "b.txt"):
        (folder / name).write_text(f"Answer as {name} would.", encoding="utf-8")
    sums = [
        {"question": f"What is {n} + {n % 3}?", "answer": f"It is {n}+{n % 3}.\n#### {n + n % 3}"}
        for n in range(400)
    ]
    (folder / "gsm8k").mkdir()
    write_lines(folder / "gsm8k" / "train.jsonl", sums[:340])
    write_lines(folder / "gsm8k" / "test.jsonl", sums[340:])
    plain = [{"question": row["question"], "answer": row["answer"].split()[-1]} for row in sums]
    write_lines(folder / "questions.jsonl", plain)
    (folder / "corpus").mkdir()
    for n in range(12):
        text = "\n".join(row["answer"] for row in sums[n::12])
        (folder / "corpus" / f"{n}.txt").write_text(text, encoding="utf-8")
    public = folder / "grade_school_math" / "data"
    public.mkdir(parents=True)
    write_lines(public / "train.jsonl", [*GSM8K_ROWS, *GSM8K_ROWS])  # five are shown solved
    write_lines(public / "test.jsonl", GSM8K_ROWS)
    (folder / "ARC-Challenge").mkdir()
    write_lines(folder / "ARC-Challenge" / "test.jsonl", ARC_ROWS)
    _write_chat_model(folder / CHAT_MODEL)


def _write_chat_model(directory: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    tiny_llama(len(tokenizer), max_positions=512).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _add_tags(directory: Path, *tags: str) -> None:
    """So that it is also the model of docs/judge.md that thinks between tags of its own."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in tags])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _run_before(folder: Path) -> None:
    """What `make run` leaves, had its champion learned more than these few steps."""
    for command in ("bake", "think"):
        done = run(folder, f"distforge {command} --config configs/quick.toml")
        assert done.returncode in (0, 3), done.stdout + done.stderr
    assert json.loads((folder / "runs" / "quick_step2" / "summary.json").read_text())
