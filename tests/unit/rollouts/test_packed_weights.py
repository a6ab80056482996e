"""Checksums and packing, without a model."""

import pytest
import torch

from distforge.rollouts.weights import checksum, pack, unpack
from tests.unit.rollouts.engines import weights


def test_unpacked_weights_equal_what_was_packed():
    tied = torch.randn(4, 6)
    given = {
        **weights(3),
        "embedding": tied,
        "head": tied,
        "transposed": tied.T,
        "counter": torch.tensor(7, dtype=torch.int64),
        "nothing": torch.empty(0, 3),
        "nothing_else": torch.empty(0, 3),
    }
    packed = pack(given)
    assert len(packed.arrays) == len(given) - 1  # the tied pair lies there once
    found = unpack(packed)
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert checksum(found) == checksum(given)


def swap_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(0)


def flip_one_bit(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(torch.int32)[-1, -1] ^= 1
    return changed


@pytest.mark.parametrize(
    "change", [swap_rows, flip_one_bit, torch.neg, lambda t: t.reshape(32, 128), torch.Tensor.half]
)
def test_a_checksum_sees_every_change(change):
    given = weights(0)
    assert len(checksum(given)) == 32
    assert checksum(given) == checksum(weights(0))
    assert checksum({**given, "matrix": change(given["matrix"])}) != checksum(given)
    assert checksum({("other" if k == "half" else k): v for k, v in given.items()}) != checksum(
        given
    )
