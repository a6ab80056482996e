"""The control that is no straw man: a model of equal compute that answers without a thought.

A model that was only ever taught to think scores next to nothing when it must answer at once, so
whatever it thinks looks useful. This one starts where the judged model started, sees the same
questions, and is taught their bare answers for as many tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from distforge import durable
from distforge.data.dataset import TokenRows
from distforge.errors import InputError, require_in
from distforge.models.export import export_model
from distforge.models.loading import Champion, load_champion
from distforge.models.storage import LoadDtype
from distforge.optim import OptimizerConfig, build_optimizer
from distforge.optim.schedule import ScheduleConfig
from distforge.registry.manifest import verify_manifest, write_manifest
from distforge.telemetry import RunConsole
from distforge.telemetry import metrics as names
from distforge.thinking.items import ThoughtItem
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from distforge.training.guards import DivergedError
from distforge.training.node_disks import copy_to_all
from distforge.training.supervised import SupervisedConfig, SupervisedLoop

CONTROL_DIRECTORY = "control"
"""Of a run: where its control is kept."""
_RECORD_FILE = "control.json"
_FEWEST_STEPS = 20


def _schedule() -> ScheduleConfig:
    return ScheduleConfig(kind="linear", warmup_steps=20, final_fraction=0.02)


@dataclass(frozen=True)
class ControlConfig:
    """How the control of equal compute is trained.

    enabled: whether one is; without, no verdict can be PASS.
    batch_size: examples a step, over all ranks.
    micro_batches: portions a step is computed in, over all ranks.
    seed: order of the examples.
    schedule: of the learning rate.
    optimizer: as in step 1.
    """

    enabled: bool = True
    batch_size: int = 64
    micro_batches: int = 1
    seed: int = 0
    schedule: ScheduleConfig = field(default_factory=_schedule)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require_in("[1, inf]", batch_size=self.batch_size, micro_batches=self.micro_batches)


@dataclass(frozen=True)
class Control:
    """The trained control: ``tokens`` that it was trained on, in ``steps`` steps."""

    model: PreTrainedModel
    tokens: int
    steps: int


def train_control(
    start: Champion,
    items: Sequence[ThoughtItem],
    tokens: int,
    config: ControlConfig,
    engine: EngineConfig,
    world: World,
    console: RunConsole,
    directory: Path,
    dtype: LoadDtype = "float32",
) -> Control:
    """Teach ``start`` the bare answers for ``tokens`` tokens, in place; collective.

    The result is kept in ``directory`` and found there again. ``console`` shows the progress.

    Args:
        items: to train on: what should follow each place, right after the text.
        tokens: that training reads, texts and targets, padding not counted; at least so many.
        dtype: of the control that is returned: that of the model which it is held against. It is
            trained in float32.

    Raises:
        InputError: it cannot be trained: fewer items than a batch, or the loss diverges.
    """
    wanted = {"start_sha256": start.sha256, "tokens": tokens, "seed": config.seed}
    found = world.broadcast_object(_recorded(directory, wanted) if world.is_main else None)
    if found is None:
        console.say(f"training the control of equal compute: bare answers, {tokens:,} tokens")
        dataset = direct_rows(items)
        loop = _open_loop(start, dataset, tokens, config, engine, world)
        _train(loop, console)
        mean = sum(dataset.lengths) / len(dataset)
        read = round(loop.total_steps * config.batch_size * mean)
        found = {"trained_tokens": read, "steps": loop.total_steps}
        with loop.engine.whole_model() as whole:
            if world.is_main:
                export_model(whole, start.tokenizer, directory)
                durable.write_json(directory / _RECORD_FILE, {**wanted, **found})
                write_manifest(directory)
        world.barrier()
    copy_to_all(directory, world)
    control = load_champion(str(directory), dtype).model.to(world.device)
    return Control(control, found["trained_tokens"], found["steps"])


def direct_rows(items: Sequence[ThoughtItem]) -> TokenRows:
    """A row for each place: the text up to there, and its target without a thought between."""
    places = [
        (item.id, item.text[: position + 1], target)
        for item in items
        for position, target in zip(item.positions, item.targets, strict=True)
    ]
    rows = [([*text, *target], len(text)) for _, text, target in places]
    return TokenRows(rows, [name for name, _, _ in places])


def _recorded(directory: Path, wanted: dict[str, object]) -> dict[str, int] | None:
    """What the record of an earlier, whole training of the same control says."""
    if not (directory / _RECORD_FILE).is_file():
        return None
    try:
        verify_manifest(directory)
        record = json.loads((directory / _RECORD_FILE).read_text(encoding="utf-8"))
    except (InputError, OSError, ValueError):
        return None
    same = isinstance(record, dict) and all(record.get(k) == v for k, v in wanted.items())
    return record if same else None


def _open_loop(
    start: Champion,
    dataset: TokenRows,
    tokens: int,
    config: ControlConfig,
    engine_config: EngineConfig,
    world: World,
) -> SupervisedLoop:
    each = config.batch_size * sum(dataset.lengths) / len(dataset)
    training = SupervisedConfig(
        max_steps=max(_FEWEST_STEPS, math.ceil(tokens / each)),
        batch_size=config.batch_size,
        micro_batches=config.micro_batches * world.size,
        schedule=config.schedule,
        seed=config.seed,
    )
    engine = TrainingEngine(
        start.model,
        lambda module: build_optimizer(module, config.optimizer),
        engine_config,
        world,
        training.micro_batches,
    )
    return SupervisedLoop(engine, dataset, training, world, start.tokenizer.pad_token_id)


def _train(loop: SupervisedLoop, console: RunConsole) -> None:
    try:
        with console.progress(loop.total_steps, "control"):
            for record in loop.steps():
                console.update(record.step, {names.TRAIN_LOSS: record.result.loss})
    except DivergedError as error:
        raise InputError(
            f"the control of equal compute cannot be trained ({error}); lower the learning rate of "
            "control.optimizer"
        ) from error
