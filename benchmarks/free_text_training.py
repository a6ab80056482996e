"""What one size of `bench_free_text.py` does: corpus, training, reinforcement, questions."""

from __future__ import annotations

import math
import shutil
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distforge.data.free_text import TextConfig, read_documents
from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.tokenizer import train_tokenizer
from distforge.optim import MuonGrokfastConfig, OptimizerConfig
from distforge.optim.build import AdamWConfig
from distforge.quietstar import ThinkingModel, ThoughtTrainer
from distforge.quietstar.config import (
    EpisodeConfig,
    LearnerConfig,
    ObjectiveConfig,
    ProbeConfig,
    RewardConfig,
)
from distforge.quietstar.items import text_items
from distforge.quietstar.saved_bits import bits_a_token, bits_saved, savings
from distforge.telemetry import RunLogger, TelemetryConfig
from distforge.theater.conditions import ThoughtProbe
from distforge.thinking.items import ThoughtItem
from distforge.thinking.positions import PositionsConfig, placed
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import init_world
from distforge.training.engine_config import EngineConfig

SIZES = {
    "0.2M": ArchitectureConfig(64, 2, 4, 4, 176),
    "0.6M": ArchitectureConfig(128, 2, 4, 4, 344),
    "1.9M": ArchitectureConfig(192, 4, 6, 6, 512),
}
VOCABULARY = 1024
TOKENS, HORIZON = 64, 8
THOUGHT = ThoughtConfig(max_tokens=8)
BATCH, THOUGHTS = 16, 4
PRETRAINING, STEPS = 2000, 120
PRETRAINING_LR, LR = 2e-3, 2e-4
HELD_OUT = 400
# Of the library: what is written for people to read, not tests nor what was installed beside it.
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3", "ensurepip", "__pycache__"}


def corpus(directory: Path) -> TextConfig:
    """The standard library's sources, copied to ``directory``, which any Python has."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if not _LEFT_OUT & set(name.parts):
            (directory / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, directory / name)
    return TextConfig(path=str(directory), pattern="*.py", tokens=TOKENS)


def measure(size: str, work: Path, *, quick: bool) -> dict[str, Any]:
    """Train, reinforce, train on, and ask; single-threaded."""
    torch.set_num_threads(1)
    text = corpus(work / f"corpus_{size}")
    documents = read_documents(text)
    tokenizer = train_tokenizer((d.text for d in documents if not d.heldout), VOCABULARY)
    train, heldout = (
        text_items([d for d in documents if d.heldout is held], tokenizer, text)
        for held in (False, True)
    )
    # From all files alike, not from the first ones.
    heldout = heldout[:: max(1, len(heldout) // HELD_OUT)][:HELD_OUT]
    steps, pretraining = (4, 20) if quick else (STEPS, PRETRAINING)
    model = _new_model(size, tokenizer)
    batches = _Batches(train, BATCH * 2)
    _train_plainly(model, batches, PRETRAINING_LR, lambda: batches.drawn / pretraining)
    continued, start = (_copy(model, size, tokenizer) for _ in range(2))
    trained, spent = _reinforce(model, tokenizer, train, steps, work / f"rl_{size}")
    began = time.process_time()
    more = _Batches(train, BATCH * 2, first=batches.drawn)
    _train_plainly(continued, more, LR, lambda: (time.process_time() - began) / spent)
    return {
        "parameters": sum(p.numel() for p in trained.lm.parameters()),
        "training_tokens": len(train) * TOKENS,
        "cpu_seconds": spent,
        "steps": steps,
        "continued_steps": more.drawn - batches.drawn,
        **_compare(start, trained, continued, heldout, Tags.from_tokenizer(tokenizer)),
    }


class _Batches:
    """Pieces of text in an order drawn anew each time around."""

    def __init__(self, items: Sequence[ThoughtItem], size: int, first: int = 0) -> None:
        self._ids = torch.tensor([item.text for item in items])
        self._size, self.drawn = size, first
        self._around, self._order = -1, torch.empty(0)

    def draw(self) -> torch.Tensor:
        around, index = divmod(self.drawn * self._size, len(self._ids) - self._size)
        if around != self._around:
            generator = torch.Generator().manual_seed(around)
            self._around, self._order = around, torch.randperm(len(self._ids), generator=generator)
        self.drawn += 1
        return self._ids[self._order[index : index + self._size]]


def _train_plainly(
    model: PreTrainedModel, batches: _Batches, lr: float, progress: Callable[[], float]
) -> None:
    """AdamW on the next token, until ``progress`` is 1; the rate falls with it as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99))
    model.train()
    while (done := progress()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        ids = batches.draw()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def learner_config(steps: int) -> LearnerConfig:
    """A thought after every eighth token, for the eight that follow."""
    return LearnerConfig(
        checkpoint_every=0,
        thought=THOUGHT,
        positions=PositionsConfig(kind="interval", interval=HORIZON, horizon=HORIZON),
        reward=RewardConfig(kind="prediction_gain"),
        objective=ObjectiveConfig(nll_weight=1.0),
        episodes=EpisodeConfig(
            episodes=steps * BATCH,
            batch_size=BATCH,
            thoughts=THOUGHTS,
            episodes_per_request=BATCH,
            warmup_episodes=steps * BATCH // 20,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            adamw=AdamWConfig(lr=LR, betas=(0.9, 0.99)),
            muon_grokfast=MuonGrokfastConfig.rl().replace(kl_coefficient=0.0),
        ),
        engine=EngineConfig(dtype="float32", qk_clip_every=0),
        probe=ProbeConfig(every_steps=50, items=100, batch_size=50, coherence_items=8),
    )


def _reinforce(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Sequence[ThoughtItem],
    steps: int,
    directory: Path,
) -> tuple[ThinkingModel, float]:
    """The model after reinforcement, as exported, and the CPU seconds that it took.

    Nothing is chosen on the pieces that are reported: the probed ones are of the training files.
    """
    torch.manual_seed(0)
    telemetry = TelemetryConfig(wandb_mode="disabled", console_interval_seconds=60)
    probed, learned = train[:100], train[100:]
    with RunLogger(directory, telemetry, {}, directory.name) as log:
        trainer = ThoughtTrainer(
            ThinkingModel.wrap(model),
            tokenizer,
            learned,
            probed,
            learner_config(steps),
            init_world(),
            log,
            directory,
        )
        torch.set_num_threads(1)
        began = time.process_time()
        trainer.train()
        spent = time.process_time() - began
        with trainer.engine.whole_model() as whole:
            export_model(whole, tokenizer, directory / "last")
    return ThinkingModel.from_pretrained(directory / "last"), spent


def _compare(
    start: PreTrainedModel,
    trained: ThinkingModel,
    continued: PreTrainedModel,
    heldout: list[ThoughtItem],
    tags: Tags,
) -> dict[str, Any]:
    """Bits a token of each, what thoughts save, and what reinforcement saved with them and without,
    with intervals over files."""
    torch.manual_seed(0)  # of the mixing head, as `_reinforce` makes it
    places = learner_config(1).positions
    items = placed(heldout, trained, places, tags)
    probe = ThoughtProbe(trained, items, tags, THOUGHT, 50)
    results = {
        "with": probe.ask("own"),
        "without": probe.ask("none"),
        "filler": probe.ask("filler"),
        "shuffled": probe.ask("shuffled"),
        "continued": ThoughtProbe(continued, items, tags, THOUGHT, 50).ask("none"),
    }
    files = [item.source for item in items for _ in item.positions]
    before = ThoughtProbe(ThinkingModel.wrap(start), items, tags, THOUGHT, 50)
    gained = savings(
        {"own": before.ask("own"), "none": before.ask("none")},
        {"own": results["with"], "none": results["without"]},
        files,
    )
    return {
        "bits": {name: float(bits_a_token(r).mean()) for name, r in results.items()},
        "gains": {
            name: asdict(bits_saved(r, results["with"], files))
            for name, r in results.items()
            if name != "with"
        },
        "reinforced": {
            "with_thoughts": asdict(gained.with_thoughts),
            "without": asdict(gained.without),
            "by_thoughts": asdict(gained.by_thoughts),
        },
        "places": len(files),
        "files": len(set(files)),
    }


def _new_model(size: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return build_model(
        SIZES[size],
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _copy(model: PreTrainedModel, size: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    other = _new_model(size, tokenizer)
    other.load_state_dict(model.state_dict())
    return other
