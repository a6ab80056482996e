"""The bytes of a step, against closed forms; test_two_nodes.py counts real ones."""

import pytest

from distforge.training.traffic import bytes_sent

SQUARE = [(256, 256)] * 8
NUMEL = 8 * 256 * 256


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize(
    "stage,portions,gradients,weights",
    [(0, 3, 2, 0), (1, 3, 2, 1), (2, 3, 6, 1), (3, 3, 6, 3), (3, 1, 2, 1)],
)
def test_elementwise_traffic_of_zero(stage, portions, gradients, weights, world_size):
    found = bytes_sent(1000, [], zero_stage=stage, world_size=world_size, portions=portions)
    once = 4000 * (world_size - 1) / world_size
    assert found == {
        "gradients": gradients * once,
        "weights": weights * once,
        "updates": 0,
        "total": (gradients + weights) * once,
    }


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("update_bytes", [2, 4])
def test_matrices_that_divide_evenly(world_size, update_bytes):
    def updates(stage: int) -> float:
        return bytes_sent(
            NUMEL, SQUARE, zero_stage=stage, world_size=world_size, update_bytes=update_bytes
        )["updates"]

    away = update_bytes * NUMEL * (world_size - 1) / world_size
    assert updates(0) == away
    assert updates(1) == updates(2) == 0  # each rank's part is whole matrices
    assert updates(3) == 2 * away / world_size


def test_a_matrix_across_two_parts_goes_to_one_of_them_and_back():
    # Half of the small one in the middle travels, from one rank, and comes back.
    found = bytes_sent(NUMEL, [(256, 256), (256, 128), (256, 256)], zero_stage=1, world_size=2)
    assert found["updates"] == 4 * 2 * (256 * 128 / 2) / 2


def test_one_rank_sends_nothing():
    assert bytes_sent(NUMEL, SQUARE, zero_stage=3, world_size=1)["total"] == 0
