"""MuonGrokfast under ZeRO against DeepSpeed's own Muon: bytes sent and seconds, on two ranks.

    python benchmarks/bench_zero.py --json benchmarks/results/zero.json

Both train the same Llama on the same tokens over gloo on this machine. Bytes are read from the
kernel's counters of the loopback interface (so nothing else should use it meanwhile) around the
backward pass and the step, per rank and step. What ZeRO sends for gradients and weights anyway is
measured with an elementwise optimizer and taken off. Seconds are those of backward and step on a
batch so small that the optimizer is most of it; the variants take turns, round by round. At stage 3
all go without reduce-scatter, which DeepSpeed's Muon refuses.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import Row, arguments, publish
from transformers import LlamaConfig, LlamaForCausalLM

from distforge.optim import MuonGrokfast, MuonGrokfastConfig, split_parameters
from distforge.optim.sharding import bind_zero
from distforge.training.deepspeed_config import deepspeed_config
from distforge.training.distributed import prepare_deepspeed
from distforge.training.engine_config import EngineConfig

RANKS = 2
VARIANTS = ("distforge", "deepspeed", "elementwise")


@dataclass(frozen=True)
class Measured:
    """Of one variant: bytes sent by a rank in a step (median), seconds of a step (median)."""

    sent: float
    seconds: float


def build_model(layers: int, width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def start(variant: str, stage: int, model: LlamaForCausalLM) -> Any:
    """A DeepSpeed engine around ``model`` with the variant's optimizer."""
    import deepspeed

    config = deepspeed_config(
        EngineConfig(zero_stage=stage, backend="deepspeed"), "float32", RANKS, 1
    )
    # The buckets of a model this small: ZeRO would allocate and clear 200 MB a step.
    config["zero_optimization"] |= {"reduce_bucket_size": 2_000_000}
    if stage == 3:  # DeepSpeed's Muon refuses reduce-scatter there, so all do without
        config["zero_optimization"]["reduce_scatter"] = False
    if variant == "deepspeed":
        # torch_adam: DeepSpeed would compile an Adam of its own for minutes.
        muon = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.01, "torch_adam": True}
        config["optimizer"] = {"type": "Muon", "params": muon}
        for name, parameter in model.named_parameters():
            parameter.use_muon = name.endswith("_proj.weight")
        return deepspeed.initialize(
            model=model, model_parameters=model.parameters(), config=config
        )[0]
    # DeepSpeed's Muon iterates in bfloat16 on every device.
    settings = MuonGrokfastConfig(muon_lr=0.02, grokfast_lambda=0.2, ns_dtype="bfloat16")
    if variant == "elementwise":
        settings = settings.replace(adamw_patterns=("*",))
    optimizer = MuonGrokfast(split_parameters(model, settings), settings)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    bind_zero(optimizer, engine)
    return engine


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself."""
    for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise SystemExit("bench_zero needs Linux: there is no loopback interface in /proc/net/dev")


def one_step(engine: Any, ids: torch.Tensor) -> tuple[int, float]:
    """Bytes that both ranks sent in backward and step, and their seconds."""
    loss = engine(input_ids=ids, labels=ids).loss
    dist.barrier()
    before, began = loopback_bytes(), time.perf_counter()
    engine.backward(loss)
    engine.step()
    dist.barrier()
    return loopback_bytes() - before, time.perf_counter() - began


def rank_main(rank: int, folder: str, stage: int, layers: int, width: int, rounds: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    prepare_deepspeed()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    import deepspeed

    deepspeed.init_distributed(dist_init_required=False)
    engines = {v: start(v, stage, build_model(layers, width)) for v in VARIANTS}
    results: dict[str, list[tuple[int, float]]] = {v: [] for v in VARIANTS}
    generator = torch.Generator().manual_seed(rank)
    for number in range(rounds + 2):
        ids = torch.randint(512, (1, 16), generator=generator)
        for variant, engine in engines.items():
            measured = one_step(engine, ids)
            if number >= 2:  # the first steps allocate
                results[variant].append(measured)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def measure(stage: int, layers: int, width: int, rounds: int) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (folder, stage, layers, width, rounds), nprocs=RANKS)
        raw = torch.load(f"{folder}/results.pt", weights_only=True)
    return {
        variant: Measured(
            statistics.median(sent for sent, _ in steps) / RANKS,
            statistics.median(seconds for _, seconds in steps),
        )
        for variant, steps in raw.items()
    }


def rows_of(stage: int, measured: dict[str, Measured]) -> list[Row]:
    ours, peer, base = (measured[v] for v in VARIANTS)
    mega = 2**20
    own, theirs = (ours.sent - base.sent) / mega, (peer.sent - base.sent) / mega
    name = "DeepSpeed's Muon"
    return [
        Row(f"ZeRO {stage}: sent for Muon", own, name, theirs, "MiB", theirs / max(own, 1e-9)),
        Row(
            f"ZeRO {stage}: sent in all",
            ours.sent / mega,
            name,
            peer.sent / mega,
            "MiB",
            peer.sent / ours.sent,
        ),
        Row(
            f"ZeRO {stage}: backward and step",
            ours.seconds,
            name,
            peer.seconds,
            "s",
            peer.seconds / ours.seconds,
        ),
    ]


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    # An odd number of layers: at stage 2 a matrix lies across the two ranks' parts.
    layers, width, rounds = (3, 128, 3) if options.quick else (9, 384, 10)
    rows: list[Row] = []
    raw = {}
    for stage in (2, 3):
        measured = measure(stage, layers, width, rounds)
        raw[f"stage {stage}"] = {v: asdict(m) for v, m in measured.items()}
        rows += rows_of(stage, measured)
    model = build_model(layers, width)
    muon = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight"))
    publish(
        rows, options.json, parameters=model.num_parameters(), muon_parameters=muon, measured=raw
    )


if __name__ == "__main__":
    main()
