"""What the optimizer is of a training step: forward, backward and update, by optimizer.

    python benchmarks/bench_model_step.py --json benchmarks/results/model_step.json

A Llama of 24.6M parameters on whatever device there is, and on a GPU one of SmolLM2-135M's shape
too; random weights and tokens, weights in float32, on a GPU under bfloat16 autocast. Optimizers
take turns, each on a model of its own; a figure is a median of rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from harness import Row, arguments, publish
from kernel_peers import torch_muon_in
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from distforge.ops import build_info
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from distforge.optim.precision import fastest_dtype

OURS = "MuonGrokfast"

SHAPES: dict[str, dict[str, Any]] = {
    "24.6M": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
    },
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}


@dataclass(frozen=True)
class Size:
    """A model of ``SHAPES``, and the batch that it is trained on."""

    shape: str
    batch: int
    length: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.shape}, batch {self.batch} x {self.length}"


QUICK = Size("24.6M", batch=1, length=32, rounds=1)
ON_CPU = [Size("24.6M", batch=8, length=256, rounds=7)]
ON_GPU = [Size("24.6M", batch=32, length=256, rounds=21), Size("135M", 16, 512, rounds=21)]


def make_model(size: Size, device: torch.device) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[size.shape], tie_word_embeddings=True, use_cache=False)
    return LlamaForCausalLM(config).to(device)


def ours(model: nn.Module) -> Callable[[], Any]:
    return MuonGrokfast(model.named_parameters(), MuonGrokfastConfig.baking()).step


def muon_of_torch(model: nn.Module) -> Callable[[], Any]:
    """torch.optim.Muon for the hidden matrices, in the dtype that ours iterates in, and fused AdamW
    for the rest; no Grokfast."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(hidden, lr=1e-4, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=1e-4, weight_decay=0.01, fused=True)

    dtype = fastest_dtype(hidden[0].device)

    def step() -> None:
        with torch_muon_in(dtype):
            muon.step()
        adamw.step()

    return step


def adamw(model: nn.Module) -> Callable[[], Any]:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True).step


OPTIMIZERS: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {
    OURS: ours,
    "torch.optim.Muon + AdamW, no Grokfast": muon_of_torch,
    "torch.optim.AdamW, fused": adamw,
}


@dataclass
class Trained:
    """A model and its optimizer, with the seconds of each part of every step so far."""

    model: LlamaForCausalLM
    update: Callable[[], Any]
    seconds: dict[str, list[float]]

    def step(self, tokens: torch.Tensor) -> None:
        device = tokens.device
        times = [_now(device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = self.model(input_ids=tokens, labels=tokens).loss
        times.append(_now(device))
        loss.backward()
        times.append(_now(device))
        self.update()
        times.append(_now(device))
        self.model.zero_grad()
        for seconds, (begin, end) in zip(self.seconds.values(), pairwise(times), strict=True):
            seconds.append(end - begin)

    def milliseconds(self) -> dict[str, float]:
        """Median of each part; the first two steps do not count."""
        return {p: 1e3 * statistics.median(seconds[2:]) for p, seconds in self.seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(size: Size, device: torch.device) -> dict[str, dict[str, float]]:
    """By optimizer, the milliseconds of forward, backward and update."""
    trained = {}
    for name, optimizer in OPTIMIZERS.items():
        model = make_model(size, device)
        seconds: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}
        trained[name] = Trained(model, optimizer(model), seconds)
    vocabulary = SHAPES[size.shape]["vocab_size"]
    for _ in range(size.rounds + 2):
        tokens = torch.randint(vocabulary, (size.batch, size.length)).to(device)
        for each in trained.values():
            each.step(tokens)
    return {name: each.milliseconds() for name, each in trained.items()}


def rows_of(size: Size, device: torch.device, found: dict[str, dict[str, float]]) -> list[Row]:
    rows = []
    for what, total in [
        ("update alone", lambda parts: parts["update"]),
        ("whole step", lambda parts: sum(parts.values())),
    ]:
        mine = total(found[OURS])
        for peer in (name for name in found if name != OURS):
            value = total(found[peer])
            rows.append(
                Row(f"{what}, {size}, {device.type}", mine, peer, value, "ms", value / mine)
            )
    return rows


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = ON_GPU if device.type == "cuda" else ON_CPU
    rows, parts = [], {}
    for size in [QUICK] if options.quick else sizes:
        found = measure(size, device)
        rows += rows_of(size, device, found)
        parts[str(size)] = found
        share = found[OURS]["update"] / sum(found[OURS].values())
        print(f"{size}: the update is {share:.0%} of a step with {OURS}.")
    publish(
        rows,
        options.json,
        milliseconds=parts,
        ns_dtype=str(fastest_dtype(device)),
        kernels=build_info(),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
