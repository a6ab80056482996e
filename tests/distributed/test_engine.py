"""The same training on one process and on ranks, at every ZeRO stage, against torch alone."""

import math
from pathlib import Path

import pytest
import torch

from distforge.errors import InputError
from distforge.training.distributed import World
from distforge.training.guards import NonFiniteGradientError, NonFiniteLossError
from tests.distributed.harness import RankFailure, run_ranks
from tests.training_cases import (
    MUON,
    STEPS,
    engine_config,
    make_engine,
    oracle,
    relative_distance,
    train,
    train_from_start,
    weights,
)

# fp32 rounding: sums over ranks and micro-batches are taken in another order. Measured: 1e-7.
FLOAT32 = 1e-5
# Autocast rounds activations alike everywhere up to stage 2 (measured: 2e-6). Stage 3 runs another
# linear layer, whose bf16 rounding AdamW's first steps magnify (measured: 2e-3).
BFLOAT16 = {0: 1e-4, 1: 1e-4, 2: 1e-4, 3: 1e-2}


@pytest.fixture(scope="module")
def expected():
    return oracle()


def assert_same_curve(results, curve, tolerance):
    assert [r.loss for r in results] == pytest.approx([loss for loss, _ in curve], rel=tolerance)
    assert [r.grad_norm for r in results] == pytest.approx([norm for _, norm in curve], rel=1e-4)


@pytest.mark.parametrize("size,stage", [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_ranks_and_stages_train_the_same_model(expected, size, stage):
    config = engine_config(backend="deepspeed", zero_stage=stage)
    outcomes = run_ranks(size, train_from_start, config)
    curve, last = expected
    for results, ours in outcomes:
        assert_same_curve(results, curve, FLOAT32)
        assert relative_distance(ours, last) <= FLOAT32


def test_offloaded_optimizer_trains_the_same_model(expected):
    config = engine_config(zero_stage=2, offload_optimizer=True)
    results, ours = run_ranks(2, train_from_start, config)[0]
    assert_same_curve(results, expected[0], FLOAT32)
    assert relative_distance(ours, expected[1]) <= FLOAT32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2])
def test_muon_grokfast_with_qk_clip_under_deepspeed(size, dtype):
    plain = engine_config(backend="plain", dtype=dtype)
    (alone, one), *_ = run_ranks(1, train_from_start, plain, MUON)
    tolerance = FLOAT32 if dtype == "float32" else BFLOAT16[0]
    config = engine_config(backend="deepspeed", dtype=dtype)
    for results, ours in run_ranks(size, train_from_start, config, MUON):
        assert [r.loss for r in results] == pytest.approx([r.loss for r in alone], rel=tolerance)
        assert relative_distance(ours, one) <= tolerance
        assert [r.clipped_heads for r in results] == [r.clipped_heads for r in alone]
    assert sum(r.clipped_heads for r in alone) > 0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_is_the_same_autocast_everywhere(stage):
    plain = engine_config(backend="plain", dtype="bfloat16")
    (alone, one), *_ = run_ranks(1, train_from_start, plain)
    config = engine_config(zero_stage=stage, dtype="bfloat16")
    results, ours = run_ranks(2, train_from_start, config)[0]
    tolerance = BFLOAT16[stage]
    assert [r.loss for r in results] == pytest.approx([r.loss for r in alone], rel=tolerance)
    assert relative_distance(ours, one) <= tolerance
    assert {value.dtype for value in ours.values()} == {torch.float32}


def save_and_resume(world: World, stage: int, folder: Path):
    config = engine_config(zero_stage=stage)
    straight = train_from_start(world, config)
    first = make_engine(world, config)
    train(first, world, range(2))
    first.save(folder)
    world.barrier()
    resumed = make_engine(world, config)
    resumed.load(folder)
    return straight, (train(resumed, world, range(2, STEPS)), weights(resumed))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_bitwise(tmp_path, stage):
    for (results, ours), (later, resumed) in run_ranks(2, save_and_resume, stage, tmp_path):
        assert later == results[2:]
        assert all(torch.equal(resumed[name], ours[name]) for name in ours)


def save_into(world: World, stage: int, folder: Path):
    make_engine(world, engine_config(zero_stage=stage)).save(folder)


def load_from(world: World, stage: int, folder: Path):
    make_engine(world, engine_config(zero_stage=stage)).load(folder)


def test_a_layout_that_cannot_be_converted_is_refused_by_name(tmp_path):
    run_ranks(1, save_into, 1, tmp_path)
    saved = "deepspeed, zero_stage 1, float32, 1 ranks"
    with pytest.raises(RankFailure, match=f"InputError: .*saved by {saved}, but this engine is"):
        run_ranks(2, load_from, 0, tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(RankFailure, match=r"InputError: .*has no rank_0\.pt: it is no checkpoint"):
        run_ranks(1, load_from, 1, tmp_path)


def generate_unevenly(world: World):
    engine = make_engine(world, engine_config(zero_stage=3))
    train(engine, world, range(1))
    engine._module.generation_config.eos_token_id = [1, 9]
    with engine.whole_model() as module:
        assert module.generation_config.eos_token_id == [1, 9]
        ids = torch.tensor([[5, 6, 7]])
        length = 2 + 3 * world.rank
        out = module.generate(ids, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    train(engine, world, range(1, 2))
    return out[0].tolist()


def test_whole_model_of_stage_3_generates_without_lockstep():
    short, long = run_ranks(2, generate_unevenly)
    assert (len(short), len(long)) == (5, 8)
    assert long[:5] == short


def spoil_one_rank(world: World, stage: int, what: str):
    engine = make_engine(world, engine_config(zero_stage=stage))
    train(engine, world, range(1))
    before = weights(engine)
    if world.rank == 1:
        head = engine._module.get_output_embeddings()
        if what == "loss":
            head.register_forward_hook(lambda *_: _[2] * math.nan)
        else:
            head.register_forward_hook(lambda *_: PoisonGradient.apply(_[2]))
    error = NonFiniteLossError if what == "loss" else NonFiniteGradientError
    with pytest.raises(error, match="step 2"):
        train(engine, world, range(1, 2))
    after = weights(engine)
    return all(torch.equal(before[name], after[name]) for name in before)


class PoisonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_bad_rank_stops_all_before_the_update(stage, what):
    assert run_ranks(2, spoil_one_rank, stage, what) == [True, True]


def uneven(world: World):
    try:
        make_engine(world, engine_config(), portions=3)
    except InputError as error:
        return str(error)
    return None


def test_micro_batches_must_divide_by_the_ranks():
    assert all("micro_batches is 3" in message for message in run_ranks(2, uneven))


def unlike_processors(world: World):
    from distforge.optim import precision as module

    module.cpu_multiplies_bfloat16 = lambda: world.rank == 1
    try:
        make_engine(world, engine_config(dtype="auto"))
    except InputError as error:
        return str(error)
    return None


def test_ranks_on_unlike_processors_are_told_to_name_a_dtype():
    expected = "dtype 'auto' is 'float32' on rank 0 and 'bfloat16' on rank 1"
    assert all(expected in message for message in run_ranks(2, unlike_processors))


def half_precision(world: World, backend: str):
    """float16 is refused on a CPU for its speed; here it runs, to see the loss scale work."""
    from distforge.training import engine as engine_module

    engine_module.resolve_dtype = lambda dtype, device: dtype
    engine = make_engine(world, engine_config(backend=backend, dtype="float16"))
    return train(engine, world, range(STEPS)), weights(engine)


def test_float16_at_stage_0_scales_and_unscales_its_loss():
    (alone, one), *_ = run_ranks(1, half_precision, "plain")
    (results, ours), *_ = run_ranks(2, half_precision, "deepspeed")
    assert all(0.1 < r.grad_norm < 100 for r in alone)
    assert [r.grad_norm for r in results] == pytest.approx([r.grad_norm for r in alone], rel=1e-3)
    assert relative_distance(ours, one) <= 1e-3
