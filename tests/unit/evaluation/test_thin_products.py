"""Linear layers turned around, against float64."""

import pytest
import torch
from torch import nn

from distforge.evaluation.thin_products import thin_products


@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 1, 5), (3, 2, 5), (65, 5), (0, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product(shape, bias) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 9, bias=bias), torch.randn(shape)
    exact = x.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    with torch.no_grad(), thin_products(layer):
        found = layer(x)
    assert found.shape == (*shape[:-1], 9)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_other_dtypes_and_patched_layers_stay_as_they_are() -> None:
    half, own = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4)
    own.forward = lambda x: x  # type: ignore[method-assign]
    both = nn.ModuleList([half, own])
    with thin_products(both):
        assert "forward" not in vars(half)
        assert own(7) == 7
    assert own(7) == 7


def test_layers_are_themselves_again_after_a_failure() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="shapes"), thin_products(layer):
        layer(torch.ones(2, 3))
    assert "forward" not in vars(layer)
