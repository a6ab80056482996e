"""Ranks on processors of several kinds agree on the dtype in which they iterate and send."""

from dataclasses import replace

import pytest
import torch

from distforge.optim import precision
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.muon_oracle import muon_oracle
from tests.newton_schulz_calls import newton_schulz_calls
from tests.training_cases import MUON, STEPS, engine_config, make_engine, relative_distance, weights
from tests.training_cases import train as train_engine

AUTO = replace(
    MUON, muon_grokfast=MUON.muon_grokfast.replace(qk_clip_threshold=None, ns_dtype="auto")
)


def train(world: World, stage: int, multiplies: tuple[bool, bool]):
    """Last weights, and the dtypes that this rank has iterated in."""
    precision.cpu_multiplies_bfloat16 = lambda: multiplies[world.rank]
    with newton_schulz_calls() as calls:
        engine = make_engine(world, engine_config(zero_stage=stage), AUTO, world.size)
        train_engine(engine, world, range(STEPS), world.size)
    return weights(engine), {call.dtype for call in calls}


# At stage 0 results are gathered, at the others fragments go both ways.
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(
    ("multiplies", "dtype", "largest"),
    [
        ((True, False), torch.float32, 1e-5),
        ((False, True), torch.float32, 1e-5),
        ((True, True), torch.bfloat16, 2e-2),
    ],
)
def test_bfloat16_is_for_those_who_all_multiply_it(stage, multiplies, dtype, largest):
    expected = muon_oracle()
    outcomes = run_ranks(2, train, stage, multiplies)
    assert set.union(*(dtypes for _, dtypes in outcomes)) == {dtype}
    for ours, _ in outcomes:
        assert relative_distance(ours, expected) <= largest
