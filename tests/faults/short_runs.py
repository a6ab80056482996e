"""Runs of about a second that go through all that a long one does, for faults to be put into.

Each is given a folder, and all that it writes lies below it; what they read lies elsewhere.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distforge.cli import main
from distforge.data import THINKING_TOKENS, write_splits
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.vocabulary import add_thinking_tokens
from distforge.registry.manifest import find_manifest_faults, write_manifest
from distforge.training.previous import previous
from tests import baking_cases
from tests.shared import build_once

NAME = "run"
STEPS = {"step1": 4, "step2": 3}
# Of each strategy: two held-out questions and four to train on.
_EXAMPLES, _HELDOUT = 6, 2
_COMMON = """
name = "run"
[data]
path = "{data}"
[engine]
dtype = "float32"
[telemetry]
wandb_mode = "disabled"
[registry]
enabled = false
"""
_STEP1 = """
checkpoint_every = 2
keep_checkpoints = true
[champion]
path = "{model}"
[training]
max_steps = 4
batch_size = 4
micro_batches = 2
[evaluation]
every_steps = 2
validation_questions = 7
"""
_STEP2 = """
baked = "{model}"
baked_accuracy = 0.5
checkpoint_every = 1
keep_checkpoints = true
[thought]
max_tokens = 4
[episodes]
episodes = 12
batch_size = 4
thoughts = 2
episodes_per_request = 2
warmup_episodes = 4
[probe]
every_steps = 3
items = 4
coherence_items = 1
min_sampled_accuracy = 0.0
[control]
batch_size = 12
[theater]
bootstrap = 1000
"""


def made() -> Path:
    """What the runs read, made once: a model, data, configurations."""
    return build_once("short-runs", _make)


def _make(root: Path) -> None:
    tokenizer = copy.deepcopy(baking_cases.tokenizer())  # that one is all tests'
    shape = ArchitectureConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64
    )
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = build_model(shape, len(tokenizer), 0, **special)
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, 0)
    export_model(model, tokenizer, root / "model")
    write_manifest(root / "model")
    seen: dict[str, int] = {}
    rows = []
    for example in baking_cases.examples():
        number = seen[example.strategy] = seen.get(example.strategy, 0) + 1
        if number <= _EXAMPLES:
            rows.append(replace(example, split="heldout" if number <= _HELDOUT else "train"))
    write_splits(rows, root / "data")
    for name, text in (("step1", _STEP1), ("step2", _STEP2)):
        top, *tables = text.split("[", 1)
        words = (top + _COMMON + "[".join(["", *tables])).format(
            data=root / "data", model=root / "model"
        )
        (root / f"{name}.toml").write_text(words, encoding="utf-8")


def step1(folder: Path, *more: str, **changes: str) -> int:
    """``distforge bake``: four steps, checkpoints and evaluations after two and four."""
    return main(["bake", "--config", _config("step1", folder, **changes), *more])


def step2(folder: Path) -> int:
    """``distforge think``: three steps, a checkpoint after each, a control of equal compute."""
    return main(["think", "--config", _config("step2", folder)])


def _config(name: str, folder: Path, **changes: str) -> str:
    """A file beside the folder; words on the command line take a tenth of a second to be read."""
    told = {"output": str(folder), **changes}
    lines = [f'{key} = "{value}"' for key, value in told.items()]
    file = folder.with_name(f"{folder.name}.{name}.toml")
    file.write_text("\n".join(lines) + (made() / f"{name}.toml").read_text("utf-8"), "utf-8")
    return str(file)


def is_finished(folder: Path) -> bool:
    """Whether the run has ended and says so."""
    return (folder / NAME / "summary.json").exists()


def weights(folder: Path) -> bytes:
    """What the run is for."""
    return (folder / NAME / "model" / "model.safetensors").read_bytes()


@dataclass(frozen=True)
class Case:
    """Something that a fault is put into; all functions take its folder and can be imported.

    run: what is broken; its result is the exit status. again: what a user does afterwards, and
    ``is_finished`` whether that is needed. product: what must be as if nothing had happened; it is
    compared. prepare: makes the folder's first content. statuses: what ``run`` may end with.
    is_whole: what holds at any time. anew: what a user does instead where the run was killed, or
    had no disk to its end. database_share: see `plan`.
    """

    name: str
    run: Callable[[Path], int]
    again: Callable[[Path], int]
    is_finished: Callable[[Path], bool]
    product: Callable[[Path], object]
    prepare: Callable[[Path], object] = Path.mkdir
    statuses: tuple[int, ...] = (0, 2, 3)
    is_whole: Callable[[Path], bool] = Path.is_dir
    anew: Callable[[Path], int] | None = None
    database_share: int = 1


def prepare_finished(folder: Path) -> None:
    """A run that is finished."""
    shutil.copytree(
        build_once("short-runs-finished", lambda root: step1(root / "runs")) / "runs", folder
    )


def replace_(folder: Path) -> int:
    """Step 1 anew, over the finished one."""
    return step1(folder, existing="replace")


def replace_again(folder: Path) -> int:
    """What a launcher gives when it starts that again."""
    return step1(folder, existing="replace", resume="auto")


def has_a_finished_model(folder: Path) -> bool:
    """The new one, or the one that is being replaced."""
    runs = (folder / NAME, previous(folder / NAME))
    finished = [run for run in runs if (run / "summary.json").exists()]
    return any(not list(find_manifest_faults(run / "model")) for run in finished)


def never(_folder: Path) -> bool:
    """The user goes on whatever is there."""
    return False


STEP1 = Case("step 1", step1, step1, is_finished, weights)
STEP2 = Case("step 2", step2, step2, is_finished, weights)
REPLACE = Case(
    "replace",
    replace_,
    replace_again,
    never,
    weights,
    prepare_finished,
    is_whole=has_a_finished_model,
)
