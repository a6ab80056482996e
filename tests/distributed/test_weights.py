"""Whole weights for rollouts, from every ZeRO stage."""

import pytest
import torch

from distforge.rollouts import gather_weights
from distforge.rollouts.weights import checksum, pack, unpack
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.tiny_models import tiny_llama
from tests.training_cases import VOCAB, engine_config, make_engine, train


def gathered(world: World, backend: str, stage: int, steps: int):
    engine = make_engine(world, engine_config(backend=backend, zero_stage=stage))
    train(engine, world, range(steps))
    found = unpack(pack(gather_weights(engine)))
    return checksum(found), {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_before_training_they_are_the_plain_models_bit_by_bit(stage):
    expected = tiny_llama(VOCAB).state_dict()
    for digest, found in run_ranks(2, gathered, "deepspeed", stage, 0):
        assert digest == checksum(expected)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_after_training_all_ranks_have_what_one_process_has(stage):
    [(_, alone)] = run_ranks(1, gathered, "plain", 0, 2)
    (digest, found), (other, _) = run_ranks(2, gathered, "deepspeed", stage, 2)
    assert digest == other
    for name, expected in alone.items():
        # fp32 rounding: ranks sum in another order.
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
