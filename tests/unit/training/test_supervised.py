"""The supervised loop: what it feeds the engine, when it stops, and that it resumes anywhere."""

from collections import Counter

import pytest
import torch

from distforge.data import Example, ReasoningDataset
from distforge.data.strategies import STRATEGY_PROMPTS
from distforge.errors import InputError
from distforge.optim import ScheduleConfig
from distforge.optim.metrics import OptimizerMetrics
from distforge.telemetry import metrics
from distforge.training.distributed import World
from distforge.training.step_result import StepResult
from distforge.training.supervised import StepRecord, SupervisedConfig, SupervisedLoop
from tests.tiny_models import tiny_tokenizer

PAD = 0
NUM_EXAMPLES = 22  # 5 steps of 4 an epoch; two examples are left out of each epoch
SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=2, final_fraction=0.0)


class RecordingEngine:
    """Stands where the engine stands and keeps what it is given."""

    def __init__(self):
        self.calls = []

    def train_step(self, micro_batches, lr_factor, global_target_tokens, loss_limit):
        self.calls.append((micro_batches, lr_factor, global_target_tokens))
        return StepResult(
            loss=2.0, grad_norm=3.0, lr=lr_factor, token_accuracy=0.5, clipped_heads=0
        )


@pytest.fixture(scope="module")
def dataset():
    strategy = next(iter(STRATEGY_PROMPTS))
    examples = [
        Example(
            id=str(n),
            difficulty=1,
            seed=0,
            verifier="exact",
            question=f"What is {n} + 1?",
            reasoning="Add one. " * (1 + n % 5),
            answer=str(n + 1),
            strategy=strategy,
            task="addition",
            split="train",
        )
        for n in range(NUM_EXAMPLES)
    ]
    return ReasoningDataset(examples, tiny_tokenizer(), 200)


def make_loop(dataset, rank=0, size=1, **changes):
    settings = {"epochs": 2.0, "batch_size": 4, "micro_batches": 2, "schedule": SCHEDULE}
    engine = RecordingEngine()
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    config = SupervisedConfig(**{**settings, **changes})
    return SupervisedLoop(engine, dataset, config, world, PAD), engine


def rows_of(micro_batches):
    """The examples of micro-batches, as ids without padding."""
    return [
        tuple(ids[mask == 1].tolist())
        for batch in micro_batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def served(engine):
    return [(rows_of(batches), factor, targets) for batches, factor, targets in engine.calls]


def test_every_step_of_every_epoch(dataset):
    loop, engine = make_loop(dataset)
    records = list(loop.steps())
    assert [r.step for r in records] == list(range(1, 11))
    assert [r.epoch for r in records] == pytest.approx([step / 5 for step in range(1, 11)])
    everything = {tuple(dataset[i]["input_ids"].tolist()) for i in range(NUM_EXAMPLES)}
    epochs = [
        [row for batches, _, _ in engine.calls[start : start + 5] for row in rows_of(batches)]
        for start in (0, 5)
    ]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= everything
    assert epochs[0] != epochs[1]


def test_targets_are_those_of_the_whole_step(dataset):
    loop, engine = make_loop(dataset)
    list(loop.steps())
    for batches, _, targets in engine.calls:
        assert len(batches) == 2
        assert targets == sum(int((batch["labels"] != -100).sum()) for batch in batches)


def test_the_learning_rate_follows_the_schedule(dataset):
    loop, engine = make_loop(dataset)
    list(loop.steps())
    ramp_and_decay = [0.5, 1.0] + [1 - step / 8 for step in range(8)]
    assert [factor for _, factor, _ in engine.calls] == pytest.approx(ramp_and_decay)


def test_ranks_share_a_step_without_overlap(dataset):
    alone, whole = make_loop(dataset)
    list(alone.steps())
    shares = []
    for rank in (0, 1):
        loop, engine = make_loop(dataset, rank=rank, size=2)
        list(loop.steps())
        shares.append(engine.calls)
    for (batches, factor, targets), first, second in zip(whole.calls, *shares, strict=True):
        assert len(first[0]) == len(second[0]) == 1
        assert Counter(rows_of(batches)) == Counter(rows_of(first[0]) + rows_of(second[0]))
        assert first[1:] == second[1:] == (factor, targets)


@pytest.mark.parametrize("done", range(11))
def test_resumes_at_any_step(dataset, done):
    straight, whole = make_loop(dataset)
    list(straight.steps())
    resumed, engine = make_loop(dataset)
    resumed.step = done
    records = list(resumed.steps())
    assert [r.step for r in records] == list(range(done + 1, 11))
    assert served(engine) == served(whole)[done:]


def test_epoch_steps_stop_where_epochs_end(dataset):
    loop, engine = make_loop(dataset, epochs=2.4)
    counts = []
    while loop.step < loop.total_steps:
        counts.append([r.step for r in loop.epoch_steps()])
    assert counts == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    straight, whole = make_loop(dataset, epochs=2.4)
    list(straight.steps())
    assert served(engine) == served(whole)
    assert list(loop.epoch_steps()) == []


def test_epoch_steps_after_a_resume_end_the_epoch_begun(dataset):
    loop, _ = make_loop(dataset)
    loop.step = 3
    assert [r.step for r in loop.epoch_steps()] == [4, 5]


@pytest.mark.parametrize(
    "changes, total",
    [
        ({"epochs": 1.0}, 5),
        ({"epochs": 0.5}, 2),
        ({"epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "epochs": 0.0}, 7),
    ],
)
def test_length_of_the_run(dataset, changes, total):
    loop, engine = make_loop(dataset, **changes)
    assert loop.steps_per_epoch == 5
    list(loop.steps())
    assert loop.total_steps == loop.step == len(engine.calls) == total


def test_the_seed_decides_the_order(dataset):
    orders = []
    for seed in (0, 0, 1):
        loop, engine = make_loop(dataset, seed=seed)
        list(loop.steps())
        orders.append(served(engine))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_record_as_metrics(dataset):
    loop, _ = make_loop(dataset)
    record = next(loop.steps())
    assert record.tokens_per_second > 0
    assert record.as_metrics() == {
        metrics.TRAIN_LOSS: 2.0,
        metrics.TRAIN_GRAD_NORM: 3.0,
        metrics.TRAIN_LEARNING_RATE: 0.5,
        metrics.TRAIN_TOKEN_ACCURACY: 0.5,
        metrics.TRAIN_TOKENS_PER_SECOND: record.tokens_per_second,
        metrics.TRAIN_EPOCH: 0.2,
        metrics.TRAIN_SKIPPED_STEPS: 0,
        metrics.OPTIMIZER_CLIPPED_HEADS: 0,
    }


def test_what_the_optimizer_measured_is_in_the_record():
    measured = OptimizerMetrics(0.2, 0.9, 0.3, 14)
    result = StepResult(2.0, 3.0, 0.5, 0.5, 4, measured)
    record = StepRecord(step=1, epoch=0.1, result=result, tokens_per_second=1.0)
    given = record.as_metrics()
    assert given[metrics.OPTIMIZER_UPDATE_RMS] == 0.2
    assert given[metrics.OPTIMIZER_GRAD_EMA_COSINE] == 0.9
    assert given[metrics.OPTIMIZER_NS_RESIDUAL] == 0.3
    assert given[metrics.OPTIMIZER_CLIPPED_HEADS] == 4


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"max_steps": -1}, "max_steps -1"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"micro_batches": 5, "batch_size": 4}, "micro_batches is 5"),
    ],
)
def test_wrong_values_are_named(changes, named):
    with pytest.raises(InputError, match=named):
        SupervisedConfig(**changes)


def test_more_in_a_batch_than_there_is(dataset):
    with pytest.raises(InputError, match="batch_size is 23, but only 22"):
        make_loop(dataset, batch_size=23)
