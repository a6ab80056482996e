"""Binding to DeepSpeed directly, as someone with a DeepSpeed script of their own does it."""

import importlib.metadata

import pytest
import torch

from distforge.errors import InputError
from distforge.optim import MuonGrokfast, MuonGrokfastConfig, split_parameters
from distforge.optim.sharding import bind_zero
from distforge.training.distributed import World
from tests.distributed.harness import RankFailure, run_ranks
from tests.newton_schulz_calls import newton_schulz_calls
from tests.tiny_models import tiny_llama
from tests.training_cases import VOCAB, relative_distance

CONFIG = MuonGrokfastConfig(muon_lr=0.02, adamw_lr=1e-3, grokfast_lambda=0.2)
STEPS = 3
# Every rank computes the same gradient, yet the last bit of a master can round its copy the other
# way. Measured: 7e-5.
BFLOAT16 = 1e-3


def initialize(world: World, stage: int, zero: dict | None = None, **sections):
    """DeepSpeed around a tiny Llama with MuonGrokfast as its client; not bound yet."""
    import deepspeed
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_init_required=False)
    model = tiny_llama(VOCAB)
    optimizer = MuonGrokfast(split_parameters(model, CONFIG), CONFIG)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.5,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000, **(zero or {})},
            **sections,
        },
    )
    return engine, optimizer


def train_in_bfloat16(world: World, stage: int):
    from deepspeed.utils import safe_get_full_fp32_param

    sections = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    engine, optimizer = initialize(world, stage, **sections)
    bind_zero(optimizer, engine)
    generator = torch.Generator().manual_seed(3)
    with newton_schulz_calls() as calls:
        for _ in range(STEPS):
            ids = torch.randint(VOCAB, (4, 12), generator=generator)
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
    masters = {n: safe_get_full_fp32_param(p) for n, p in engine.module.named_parameters()}
    return type(engine.optimizer).__name__, masters, sum(call.shape[0] for call in calls)


@pytest.mark.parametrize(
    "stage,kind",
    [
        (1, "BF16_Optimizer"),
        (2, "DeepSpeedZeroOptimizer"),
        (3, "DeepSpeedZeroOptimizer_Stage3"),
    ],
)
def test_bfloat16_weights_with_float32_masters(stage, kind):
    (_, alone, _), *_ = run_ranks(1, train_in_bfloat16, 2)
    outcomes = run_ranks(2, train_in_bfloat16, stage)
    assert [name for name, _, _ in outcomes] == [kind] * 2
    assert sum(calls for _, _, calls in outcomes) == 14 * STEPS
    for _, masters, _ in outcomes:
        assert {m.dtype for m in masters.values()} == {torch.float32}
        assert relative_distance(masters, alone) <= BFLOAT16


def bind_with(world: World, stage: int, zero: dict):
    bind_zero(*reversed(initialize(world, stage, zero)))


@pytest.mark.parametrize(
    "stage,zero,named",
    [
        (2, {"round_robin_gradients": True}, "round_robin_gradients"),
        (1, {"round_robin_gradients": True}, "round_robin_gradients"),
    ],
)
def test_options_with_another_layout_are_refused_by_name(stage, zero, named):
    with pytest.raises(RankFailure, match=f"InputError: .*does not work under ZeRO with .*{named}"):
        run_ranks(1, bind_with, stage, zero)


def bind_to_an_unknown_version(world: World):
    importlib.metadata.version = lambda name: "0.20.1"
    bind_with(world, 2, {})


def test_an_unknown_version_of_deepspeed_is_refused():
    with pytest.raises(RankFailure, match=r"InputError: DeepSpeed 0\.20\.1 is installed"):
        run_ranks(1, bind_to_an_unknown_version)


def bind_another_optimizer(world: World):
    engine, _ = initialize(world, 2)
    other = MuonGrokfast(tiny_llama(VOCAB).named_parameters(), CONFIG)
    with pytest.raises(InputError, match="not with the optimizer to bind"):
        bind_zero(other, engine)


def test_an_optimizer_that_deepspeed_does_not_use_is_refused():
    run_ranks(1, bind_another_optimizer)


def misplaced(world: World, stage: int):
    """DeepSpeed's masters are not where they are believed to be."""
    engine, optimizer = initialize(world, stage)
    zero = engine.optimizer
    flat = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    flat[0] = flat[0].detach().roll(1)
    bind_zero(optimizer, engine)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_layout_that_is_not_the_known_one_is_refused(stage):
    with pytest.raises(RankFailure, match="InputError: DeepSpeed's layout is not the one"):
        run_ranks(2, misplaced, stage)


def step_unbound(world: World, stage: int):
    engine, _ = initialize(world, stage)
    ids = torch.randint(VOCAB, (2, 8))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_that_was_not_bound_says_so(stage):
    with pytest.raises(RankFailure, match=r"InputError: .*bind_zero"):
        run_ranks(1, step_unbound, stage)
