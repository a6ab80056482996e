"""What bench_kernels.py measures against: what a user would pick in our place.

torch's own Muon iteration, PyPI's Muon with Grokfast, DeepSpeed's Muon by the Gram matrix, and the
filter and momentum in as few eager operations as there are, also compiled. The packages iterate in
one dtype, whatever the processor. Where another is wanted, their own steps run with their own
iteration, given the dtype.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
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


def batched_iteration(x: Tensor, steps: int = 5) -> Tensor:
    """`torch_muon_iteration` of a batch of square matrices in batched products, in x's dtype."""
    y = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = y @ y.mT
        update = torch.baddbmm(gram, gram, gram, beta=DEFAULT_B, alpha=DEFAULT_C)
        y = torch.baddbmm(y, update, y, beta=DEFAULT_A)
    return y


def best_eager_pass(
    g: Tensor, h: Tensor, m: Tensor, u: Tensor, *, alpha: float, lamb: float, beta: float
) -> None:
    """Grokfast's filter and Nesterov momentum in four operations, without a temporary."""
    h.lerp_(g, 1 - alpha)
    torch.add(g, h, alpha=lamb, out=u)
    m.lerp_(u, 1 - beta)
    u.lerp_(m, beta)


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
    return f"{_version(PEER_PACKAGE)} Gram form", lambda x: gram_form(x, dtype=x.dtype)


def deepspeed_iteration() -> tuple[str, Iteration] | None:
    """DeepSpeed's Newton–Schulz by the Gram matrix, compiled as it is there, in the argument's
    dtype; None where DeepSpeed is not installed."""
    muon = _deepspeed_muon()
    if muon is None:
        return None

    def iteration(x: Tensor) -> Tensor:
        with _deepspeed_in(muon, x.dtype):
            result: Tensor = muon.zeropower_via_gram_newtonschulz(x, 5)
        return result

    return f"{_version('deepspeed')} Gram form", iteration


def deepspeed_step(model: Model25M, dtype: torch.dtype) -> tuple[str, Callable[[], None]] | None:
    """DeepSpeed's Muon by the Gram matrix with its AdamW, in one process; it has no Grokfast."""
    muon = _deepspeed_muon()
    if muon is None:
        return None
    common = {"lr": 1e-4, "weight_decay": 0.01}
    optimizer = muon.SingleDeviceMuonWithAuxAdam(
        [
            {"params": list(model.hidden), "use_muon": True, **common},
            {"params": [model.embed_tokens], "use_muon": False, **common},
        ]
    )

    def step() -> None:
        with _deepspeed_in(muon, dtype):
            optimizer.step()

    return f"{_version('deepspeed')} Muon, no Grokfast", step


def _deepspeed_muon() -> ModuleType | None:
    try:
        return importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    except ImportError:
        return None


def _deepspeed_in(muon: ModuleType, dtype: torch.dtype) -> AbstractContextManager[object]:
    def chosen(method: str = "gram") -> torch.dtype:
        return dtype

    return mock.patch.object(muon, "ns_compute_dtype", chosen)


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

    return f"{_version(PEER_PACKAGE)} Muon + gradfilter_ema", step


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


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
