"""What a step of larger models on more GPUs would take: ``python benchmarks/scaling_model.py``.

A projection, from counted bytes (`distforge.training.traffic`, within 1% of what two and four ranks
really send), counted operations, and the assumptions of `Cluster`. Nothing here was run on GPUs.

    compute = 6 P T / (flops * utilisation)                     forward and backward of T tokens
    update  = 5 iterations * 2 newton_schulz_cost / W / (flops * utilisation)
    wire    = bytes a rank sends / bandwidth + messages * latency
    step    = compute + update + wire                           nothing overlaps, as configured
    efficiency = compute / step

The bandwidth is that inside a node up to ``gpus_per_node`` ranks, else that of a GPU's own network
port: a ring goes as fast as its slowest link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distforge.training.deepspeed_config import BUCKET_ELEMENTS
from distforge.training.engine_config import EngineConfig
from distforge.training.memory import estimate_memory
from distforge.training.traffic import bytes_sent

RANKS = (8, 64, 1024)


@dataclass(frozen=True)
class Cluster:
    """Assumed: nodes of eight GPUs of the H100 class. Bandwidths in bytes a second, of one GPU."""

    flops: float = 989e12
    utilisation: float = 0.4
    gpus_per_node: int = 8
    inside: float = 300e9
    between: float = 40e9
    latency: float = 2e-5
    memory: float = 80e9


@dataclass(frozen=True)
class Model:
    """``tokens``: of a rank in a step, ``portions`` micro-batches of them; ``stage``: of ZeRO."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    tied: bool
    stage: int
    tokens: int
    portions: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of the matrices that Muon trains."""
        kv = self.width // self.heads * self.kv_heads
        attention = [(self.width, self.width), (kv, self.width), (kv, self.width)]
        attention.append((self.width, self.width))
        gated = [(self.inner, self.width)] * 2 + [(self.width, self.inner)]
        return (attention + gated) * self.layers

    @property
    def parameters(self) -> int:
        """All of them; norms are left out."""
        return sum(map(math.prod, self.shapes)) + self.width * self.vocab * (2 - self.tied)


MODELS = (
    Model("25M", 512, 8, 8, 8, 1376, 1208, True, stage=1, tokens=65_536, portions=1),
    Model("1B", 2048, 16, 32, 8, 8192, 128_256, True, stage=2, tokens=32_768, portions=2),
    Model("70B", 8192, 80, 64, 8, 28_672, 128_256, False, stage=3, tokens=16_384, portions=4),
)


@dataclass(frozen=True)
class Projection:
    """Of one model on ``ranks`` GPUs: bytes a rank sends in a step, seconds, bytes of memory."""

    model: Model
    ranks: int
    sent: float
    compute: float
    update: float
    wire: float
    memory: float

    @property
    def efficiency(self) -> float:
        """Share of the step in which the model is computed."""
        return self.compute / (self.compute + self.update + self.wire)


def project(model: Model, ranks: int, cluster: Cluster = Cluster()) -> Projection:
    """The formulae at the top of this file."""
    speed = cluster.flops * cluster.utilisation
    sent = bytes_sent(
        model.parameters,
        model.shapes,
        zero_stage=model.stage,
        world_size=ranks,
        portions=model.portions,
        update_bytes=2,
    )["total"]
    iteration = sum(2 * min(s) ** 2 * max(s) + min(s) ** 3 for s in model.shapes)
    bandwidth = cluster.inside if ranks <= cluster.gpus_per_node else cluster.between
    return Projection(
        model,
        ranks,
        sent,
        compute=6 * model.parameters * model.tokens / speed,
        update=5 * 2 * iteration / ranks / speed,
        wire=sent / bandwidth + messages(model, ranks) * cluster.latency,
        memory=memory(model, ranks),
    )


def messages(model: Model, ranks: int) -> float:
    """One after another: the hops of a ring for each bucket of gradients and of weights."""
    buckets = math.ceil(model.parameters / BUCKET_ELEMENTS)
    collectives = 2 * buckets * (model.portions if model.stage >= 2 else 1) + buckets
    if model.stage == 3:  # layer by layer, forward and backward
        collectives = 3 * model.layers * model.portions
    return collectives * 2 * math.log2(ranks)


def memory(model: Model, ranks: int) -> float:
    """Bytes on each GPU, as a dry run estimates them; activations recomputed."""
    head = model.width // model.heads
    return estimate_memory(
        num_parameters=model.parameters,
        config=EngineConfig(zero_stage=model.stage, activation_checkpointing=True),
        dtype="bfloat16",
        world_size=ranks,
        optimizer_buffers_per_parameter=2,
        micro_batch_tokens=model.tokens // model.portions,
        hidden_size=model.width,
        num_layers=model.layers,
        intermediate_size=model.inner,
        vocab_size=model.vocab,
        num_heads=model.heads,
        sequence_length=512,
        kv_size=head * model.kv_heads,
    )["total"]


def table() -> str:
    """Markdown."""
    lines = [
        "| model | GPUs | ZeRO | a rank sends, GB | compute, s | update, s | wire, s | "
        "efficiency | memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in (project(model, ranks) for model in MODELS for ranks in RANKS):
        held = f"{each.memory / 1e9:.0f}{' (too much)' if each.memory > Cluster().memory else ''}"
        cells = [each.model.name, str(each.ranks), str(each.model.stage), f"{each.sent / 1e9:.2f}"]
        cells += [f"{seconds:.3g}" for seconds in (each.compute, each.update, each.wire)]
        lines.append(f"| {' | '.join([*cells, f'{each.efficiency:.0%}', held])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
