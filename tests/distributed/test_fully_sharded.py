"""FSDP2, HSDP and tensor parallelism train the weights of the float64 oracle.

The judge shares no code with the optimizer; what is sent is counted at torch.distributed.
"""

import math

import pytest

from tests.distributed.fully_sharded import (
    refused_normuon,
    resume_sharded,
    save_sharded,
    train_sharded,
)
from tests.distributed.harness import run_ranks
from tests.muon_oracle import muon_oracle
from tests.tiers import grid
from tests.training_cases import MAX_GRAD_NORM, STEPS, relative_distance

FLOAT32 = 1e-5
BFLOAT16 = 1e-3
MATRICES = 14 * STEPS


@pytest.fixture(scope="module")
def oracles():
    return {norm: muon_oracle(max_norm=norm) for norm in (MAX_GRAD_NORM, math.inf)}


def require_once_and_cheap(outcomes, size):
    """Each matrix was orthogonalised by one rank, and no rank sent more than it has to."""
    assert sum(count for _, count, _, _ in outcomes) == MATRICES
    for _, _, sent, muon in outcomes:
        assert sent <= 2.1 * muon / size * STEPS


@pytest.mark.parametrize(
    "size, reshard, norm",
    grid(
        (1, 2, 4),
        (True, False),
        (MAX_GRAD_NORM, math.inf),
        day=lambda n, reshard, norm: (n != 1) and (n == 2) == (reshard == (norm == math.inf)),
    ),
)
def test_fully_shard_trains_the_weights_of_the_oracle(oracles, size, reshard, norm):
    outcomes = run_ranks(size, train_sharded, "fsdp", reshard, norm)
    for ours, *_ in outcomes:
        assert relative_distance(ours, oracles[norm]) <= FLOAT32
    require_once_and_cheap(outcomes, size)


# torch does not clip where some parameters are DTensors and others are not.
@pytest.mark.parametrize(
    "kind, size, norm", [("hsdp", 4, MAX_GRAD_NORM), ("tensor parallel", 2, math.inf)]
)
def test_other_meshes_train_the_same_weights(oracles, kind, size, norm):
    outcomes = run_ranks(size, train_sharded, kind, True, norm)
    for ours, *_ in outcomes:
        assert relative_distance(ours, oracles[norm]) <= FLOAT32
    require_once_and_cheap(outcomes, size)


def test_bfloat16_computation_stays_close_to_one_process():
    (alone, *_), *_ = run_ranks(1, train_sharded, "fsdp", True, MAX_GRAD_NORM, True)
    for ours, *_ in run_ranks(2, train_sharded, "fsdp", True, MAX_GRAD_NORM, True):
        assert relative_distance(ours, alone) <= BFLOAT16


@pytest.mark.parametrize("before, after", [(2, 4), (4, 1), (1, 2)])
def test_a_run_goes_on_at_another_world_size(tmp_path, oracles, before, after):
    run_ranks(before, save_sharded, tmp_path)
    for ours in run_ranks(after, resume_sharded, tmp_path):
        assert relative_distance(ours, oracles[MAX_GRAD_NORM]) <= FLOAT32


def test_normuon_needs_whole_matrices_and_says_so():
    for message in run_ranks(2, refused_normuon):
        assert "shape (8, 8) has neuron_beta = 0.9, which needs whole matrices" in message
