"""What bench_kernels.py measures against: torch's own Muon iteration, PyPI's Muon with Grokfast.

Both packages iterate in one dtype, bfloat16, whatever the processor. Where another is wanted, their
own steps run with their own iteration, told the dtype.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import _muon
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, _zeropower_via_newtonschulz

PEER_PACKAGE = "pytorch-optimizer"
Iteration = Callable[[Tensor], Tensor]


def torch_muon_iteration(x: Tensor, steps: int = 5) -> Tensor:
    """torch.optim.Muon's Newton–Schulz in x's dtype.

    In bfloat16 it is torch's own function; that one casts to bfloat16 always, so for another dtype
    these are its lines without the cast.
    """
    if x.dtype == torch.bfloat16:
        # It works in-place on its cast, which for bfloat16 is the argument itself.
        coefficients = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
        return _zeropower_via_newtonschulz(x.clone(), coefficients, steps, EPS)
    y = x.clone()
    if x.size(0) > x.size(1):
        y = y.T
    y.div_(y.norm().clamp(min=EPS))
    for _ in range(steps):
        gram = y @ y.T
        update = torch.addmm(gram, gram, gram, beta=DEFAULT_B, alpha=DEFAULT_C)
        y = torch.addmm(y, update, y, beta=DEFAULT_A)
    return y.T if x.size(0) > x.size(1) else y


class Model25M(nn.Module):
    """The hidden matrices and the embedding of a 25M-parameter Llama, without a forward pass.

    ``shrink`` divides all sizes: with 32, the matrices are so small that a step is the host's work.
    """

    WIDTH, INNER, LAYERS, VOCABULARY = 512, 1408, 7, 4096

    def __init__(self, device: str, layers: int = LAYERS, shrink: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        width, inner = self.WIDTH // shrink, self.INNER // shrink

        def weight(rows: int, columns: int) -> nn.Parameter:
            values = torch.randn(rows, columns, generator=generator) / columns**0.5
            return nn.Parameter(values.to(device))

        self.embed_tokens = weight(self.VOCABULARY // shrink, width)
        self.hidden = nn.ParameterList()
        for _ in range(layers):
            shapes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
            self.hidden.extend(weight(*shape) for shape in shapes)

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups of MuonGrokfast."""
        return [
            {"params": list(self.hidden), "algorithm": "muon"},
            {"params": [self.embed_tokens], "algorithm": "adamw"},
        ]

    def restore_gradients(self) -> None:
        """The same gradients for every step: Grokfast's filters write into them."""
        if not hasattr(self, "gradients"):
            self.gradients = [torch.randn_like(p.detach()) for p in self.parameters()]
        for parameter, gradient in zip(self.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()


def pypi_gram_iteration() -> tuple[str, Iteration] | None:
    """pytorch-optimizer's Newton–Schulz by the Gram matrix, in the argument's dtype; None where it
    is not installed or too old to have it."""
    try:
        matrix = importlib.import_module("pytorch_optimizer.optimizer.utils.matrix")
        gram_form = matrix.zero_power_via_gram_newton_schulz
    except (ImportError, AttributeError):
        return None
    return f"{_peer_version()} Gram form", lambda x: gram_form(x, dtype=x.dtype)


def pypi_step(
    model: Model25M, lamb: float, dtype: torch.dtype
) -> tuple[str, Callable[[], None]] | None:
    """Grokfast's EMA filter and Muon of pytorch-optimizer; None where it is not installed."""
    try:
        muon = importlib.import_module("pytorch_optimizer.optimizer.muon")
        base = importlib.import_module("pytorch_optimizer.optimizer.muon.base")
        grokfast = importlib.import_module("pytorch_optimizer.optimizer.grokfast")
    except ImportError:
        return None
    groups = [
        {"params": list(model.hidden), "use_muon": True},
        {"params": [model.embed_tokens], "use_muon": False},
    ]
    optimizer = muon.Muon(groups, lr=1e-4, weight_decay=0.01)
    averages: dict[str, Tensor] | None = None
    name = "zero_power_via_newton_schulz_5"
    iteration = partial(getattr(base, name), dtype=dtype)

    def step() -> None:
        nonlocal averages
        averages = grokfast.gradfilter_ema(model, averages, lamb=lamb)
        with mock.patch.object(base, name, iteration):
            optimizer.step()

    return f"{_peer_version()} Muon + gradfilter_ema", step


def torch_step(
    model: Model25M, lamb: float, dtype: torch.dtype, alpha: float = 0.98
) -> Callable[[], None]:
    """torch.optim.Muon, AdamW for the embedding, and Grokfast's filter by the paper's own lines."""
    muon = torch.optim.Muon(list(model.hidden), lr=1e-4, weight_decay=0.01)
    adamw = torch.optim.AdamW([model.embed_tokens], lr=1e-4, weight_decay=0.01)
    averages: dict[str, Tensor] = {}

    def step() -> None:
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            assert grad is not None
            if name not in averages:
                averages[name] = grad.detach().clone()
            averages[name] = averages[name] * alpha + grad * (1 - alpha)
            parameter.grad = grad + averages[name] * lamb
        with torch_muon_in(dtype):
            muon.step()
        adamw.step()

    return step


@contextmanager
def torch_muon_in(dtype: torch.dtype) -> Iterator[None]:
    """torch.optim.Muon iterates in this dtype while the block runs."""
    if dtype == torch.bfloat16:
        yield
        return
    with mock.patch.object(
        _muon,
        "_zeropower_via_newtonschulz",
        lambda grad, *_: torch_muon_iteration(grad.to(dtype)),
    ):
        yield


def _peer_version() -> str:
    return f"{PEER_PACKAGE} {importlib.metadata.version(PEER_PACKAGE)}"
