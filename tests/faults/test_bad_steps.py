"""A bad batch on one rank: skipped on all and recorded; too many in a row end the run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from distforge.data import ReasoningDataset, make_examples
from distforge.data.text import completion_text
from distforge.models.tokenizer import train_tokenizer
from distforge.optim import build_optimizer
from distforge.rendering.plain import question_text
from distforge.training.distributed import World
from distforge.training.engine import StepResult, TrainingEngine
from distforge.training.guards import (
    DivergedError,
    GuardConfig,
    LossSpikeError,
    NonFiniteGradientError,
    NonFiniteLossError,
    SkippedStepError,
    StepGuard,
)
from distforge.training.supervised import SupervisedConfig, SupervisedLoop
from tests.distributed.harness import run_ranks
from tests.tiers import grid
from tests.tiny_models import tiny_llama
from tests.training_cases import ADAMW, STEPS, engine_config, make_engine, train, weights

BAD_STEP = 1  # counted from 0: the second
LAYOUTS = [(1, "plain", 0), (1, "deepspeed", 0), (2, "deepspeed", 0)]
LAYOUTS += [(2, "deepspeed", stage) for stage in (1, 2, 3)]


class PoisonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def poison(engine: TrainingEngine, world: World, what: str):
    """Spoil what this engine computes, on the last rank alone; returns what takes it back."""
    if world.rank != world.size - 1:
        return lambda: None
    spoil = PoisonGradient.apply if what == "gradient" else lambda x: x * math.nan
    head = engine._module.get_output_embeddings()
    return head.register_forward_hook(lambda _module, _inputs, out: spoil(out)).remove


def skip_one(world: World, backend: str, stage: int, what: str):
    """Steps 0, a bad 1, 2 … against an engine that never saw step 1."""
    config = engine_config(backend=backend, zero_stage=stage)
    engine = make_engine(world, config)
    train(engine, world, range(BAD_STEP))
    before = weights(engine)
    error = None
    if what == "spike":
        try:
            train_with_limit(engine, world, BAD_STEP, 0.01)
        except SkippedStepError as caught:
            error = caught
    else:
        restore = poison(engine, world, what)
        try:
            train(engine, world, range(BAD_STEP, BAD_STEP + 1))
        except SkippedStepError as caught:
            error = caught
        restore()
    unchanged = all(torch.equal(before[name], value) for name, value in weights(engine).items())
    later = train(engine, world, range(BAD_STEP + 1, STEPS))
    control = make_engine(world, config)
    train(control, world, range(BAD_STEP))
    expected = train(control, world, range(BAD_STEP + 1, STEPS))
    ours, theirs = weights(engine), weights(control)
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    finite = all(bool(value.isfinite().all()) for value in ours.values())
    return type(error), str(error), unchanged, later == expected, same, finite


def train_with_limit(engine: TrainingEngine, world: World, step: int, limit: float) -> None:
    from distforge.optim import lr_factor
    from tests.training_cases import SCHEDULE, count_targets, micro_batches

    engine.train_step(
        micro_batches(step)[world.rank :: world.size],
        lr_factor(SCHEDULE, step, STEPS),
        count_targets(step),
        limit,
    )


KINDS = {"loss": NonFiniteLossError, "gradient": NonFiniteGradientError, "spike": LossSpikeError}


def case_name(value: tuple[int, str, int] | str) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value))


def alternate(layout: tuple[int, str, int], what: str) -> bool:
    """By day every layout with one kind, every kind on two layouts."""
    return (LAYOUTS.index(layout) + list(KINDS).index(what)) % len(KINDS) == 0


@pytest.mark.parametrize("layout, what", grid(LAYOUTS, list(KINDS), day=alternate), ids=case_name)
def test_a_bad_step_leaves_no_trace_on_any_rank(layout: tuple[int, str, int], what: str) -> None:
    size, backend, stage = layout
    for outcome in run_ranks(size, skip_one, backend, stage, what):
        error, message, unchanged, same_results, same_weights, finite = outcome
        assert error is KINDS[what], message
        assert "step 2" in message
        assert unchanged
        assert same_results
        assert same_weights
        assert finite


def small_dataset() -> ReasoningDataset:
    examples = make_examples(70, 0)
    texts = (question_text(e.question) + completion_text(e.reasoning, e.answer) for e in examples)
    return ReasoningDataset(examples, train_tokenizer(texts, 500), 400)


def loop_with_bad_steps(world: World, bad: tuple[int, ...], path: Path):
    """Ten steps of the supervised loop; the last rank's loss is NaN in the steps ``bad``."""
    dataset = small_dataset()
    engine = TrainingEngine(
        tiny_llama(600, max_positions=400),
        lambda module: build_optimizer(module, ADAMW),
        engine_config(backend="auto"),
        world,
        2,
    )
    guard = StepGuard(GuardConfig(max_in_a_row=3), world, path)
    settings = SupervisedConfig(max_steps=10, batch_size=4, micro_batches=2)
    loop = SupervisedLoop(engine, dataset, settings, world, 0, guard)
    records, failure = [], ""
    steps = loop.steps()
    try:
        while loop.step < loop.total_steps:
            restore = poison(engine, world, "loss") if loop.step + 1 in bad else lambda: None
            try:
                records.append(next(steps))
            finally:
                restore()
    except DivergedError as error:
        failure = str(error)
    finite = all(bool(value.isfinite().all()) for value in weights(engine).values())
    return [(r.step, r.skipped, r.skipped_steps) for r in records], failure, finite


@pytest.mark.parametrize("size", [1, 2])
def test_the_batch_is_recorded_and_the_run_goes_on(tmp_path: Path, size: int) -> None:
    path = tmp_path / "skipped.jsonl"
    for records, failure, finite in run_ranks(size, loop_with_bad_steps, (2, 3, 7), path):
        assert failure == ""
        assert [step for step, skipped, _ in records if skipped] == [2, 3, 7]
        assert records[-1] == (10, False, 3)
        assert finite
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 7]
    assert {row["loss"] for row in rows} == {"nan"}
    known = {e.id for e in make_examples(70, 0)}
    for row in rows:
        named = [identity for part in row["micro_batches"] for identity in part]
        assert len(named) == 4
        assert set(named) <= known


def test_so_many_in_a_row_end_the_run_on_every_rank(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    outcomes = run_ranks(2, loop_with_bad_steps, (2, 4, 5, 6, 7), path)
    for records, failure, finite in outcomes:
        assert [step for step, skipped, _ in records if skipped] == [2, 4, 5]
        assert failure.startswith("3 steps in a row were skipped, the last because the loss of ")
        assert "lower learning rate" in failure
        assert finite
    assert len(path.read_text().splitlines()) == 4


def test_a_resumed_guard_goes_on_counting_and_keeps_its_limit() -> None:
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    config = GuardConfig(spike_nats=1.0, max_in_a_row=3)
    skipped = NonFiniteLossError("not finite", StepResult(math.nan, math.nan, 0.1, 0.0, 0))
    before, after = StepGuard(config, world), StepGuard(config, world)
    for step in range(20):
        before.accept(step / 10)
    for step in (21, 22):
        before.skip(step, skipped, [])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.loss_limit == pytest.approx(0.95 + 1.0)
    with pytest.raises(DivergedError, match="3 steps in a row"):
        after.skip(23, skipped, [])
    assert after.skipped == 3
