"""The native operators against what they replace.

    python benchmarks/bench_kernels.py --json benchmarks/results/kernels.json

Every row is a median of rounds in which ours and the peer take turns; what the machine can do at
all (a copy of as many bytes, a matrix product) is measured in the same run. Beside the JSON stands
a plot of the ratios. The step of a 25M-parameter model is held against Muon and Grokfast of PyPI's
pytorch-optimizer where that is installed (``pip install pytorch-optimizer``), and against
torch.optim.Muon. Rows of a GPU appear where one is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import Row, arguments, publish
from kernel_peers import Model25M, pypi_step, torch_muon_iteration, torch_step
from ratio_plot import plot_ratios

from distforge.ops import (
    build_info,
    grokfast_momentum_into_,
    newton_schulz,
    orthogonal_update_,
    reference,
)
from distforge.optim import MuonGrokfast, MuonGrokfastConfig

SCALARS = {"alpha": 0.98, "lamb": 0.2, "beta": 0.95, "nesterov": True}
ELEMENTS = 20_000_000
EAGER_STEP = "torch.optim.Muon + AdamW + eager Grokfast"

# From the table of goals: what a row is expected to reach.
GOALS = {
    "fused pass, cpu": 6.0,
    "newton_schulz, cpu, a=1": 1.4,
    "newton_schulz, cpu, a=4": 2.1,
    "step, cpu": 2.0,
    "fused pass, cuda": 0.85,
    "newton_schulz, cuda, a=1": 1.7,
    "newton_schulz, cuda, a=4": 2.4,
    "newton_schulz, cuda, batch": 4.0,
    "step, cuda": 5.0,
}


@dataclass
class Report:
    """The rows so far, and the ceilings measured beside them."""

    rounds: int
    device: str
    rows: list[Row] = field(default_factory=list)
    goals: dict[str, float] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)

    def compare(self, work: str, goal: str, ours: Callable[[], Any], **peers: Callable[[], Any]):
        """A row for each peer, named by its keyword with underscores for spaces."""
        times = self.times({"ours": ours, **peers})
        for name in peers:
            self.add(work, goal, times["ours"], name.replace("_", " "), times[name])

    def add(self, work: str, goal: str, ours: float, peer: str, value: float) -> None:
        self.rows.append(Row(work, ours * 1e3, peer, value * 1e3, "ms", value / ours))
        if goal in GOALS:
            self.goals[f"{work} | {peer}"] = GOALS[goal]

    def times(
        self,
        works: dict[str, Callable[[], Any]],
        before: Callable[[], None] | None = None,
        rounds: int | None = None,
    ) -> dict[str, float]:
        """Median seconds of each; they take turns, and the first two rounds do not count."""
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range((rounds or self.rounds) + 2):
            for name, work in works.items():
                if before is not None:
                    before()
                self.synchronise()
                began = time.perf_counter()
                work()
                self.synchronise()
                seconds[name].append(time.perf_counter() - began)
        return {name: statistics.median(values[2:]) for name, values in seconds.items()}

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def fused_pass(report: Report, elements: int) -> None:
    """Filter, momentum and Nesterov over one shard, and the fused update of the weights."""
    device = report.device
    g, h, m, u = (torch.randn(elements, device=device) for _ in range(4))
    half = torch.empty(elements, dtype=torch.bfloat16, device=device)
    # Reads g, h, m and writes h, m, u: a copy of three buffers moves as many bytes.
    source, target = (
        torch.randn(3, elements, device=device),
        torch.empty(3, elements, device=device),
    )
    size = f"{elements / 1e6:g}M fp32, {device}"
    times = report.times(
        {
            "ours": lambda: grokfast_momentum_into_([g], [h], [m], [u], **SCALARS),
            "bf16": lambda: grokfast_momentum_into_([g], [h], [m], [half], **SCALARS),
            "eager": lambda: reference.grokfast_momentum_(g, h, m, **SCALARS),
            "copy": lambda: target.copy_(source),
        }
    )
    report.ceilings[f"copy, {device}, GB/s"] = 24 * elements / times["copy"] / 1e9
    goal = f"fused pass, {device}"
    report.add(f"fused pass, {size}", goal if device == "cpu" else "", times["ours"], "eager torch",
               times["eager"])  # fmt: skip
    report.add(f"fused pass, {size}, u in bf16", "", times["bf16"], "eager torch", times["eager"])
    copied = goal if device == "cuda" else ""
    report.add(f"fused pass, {size}", copied, times["ours"], "copy of as many bytes", times["copy"])
    weights = {"lr": 1e-4, "weight_decay": 0.01, "scale": 1.0}
    report.compare(
        f"fused update with bf16 copy, {size}",
        "",
        lambda: orthogonal_update_(g, u, **weights, copy=half),
        eager_torch=lambda: half.copy_(g.mul_(1 - 1e-6).add_(u, alpha=-1e-4)),
    )


def newton_schulz_alone(report: Report, orders: list[int], dtypes: list[torch.dtype]) -> None:
    """One square and one 1 : 4 matrix at a time, against torch.optim.Muon's own iteration."""
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for n in orders:
            square = torch.randn(n, n, device=report.device).to(dtype)
            seconds = report.times({"product": lambda square=square: square @ square})["product"]
            ceiling = 2 * n**3 / seconds / 1e9
            report.ceilings[f"matmul, {report.device}, {name}, n={n}, GFLOP/s"] = ceiling
            for ratio in (1, 4):
                x = torch.randn(n, ratio * n, device=report.device).to(dtype)
                report.compare(
                    f"Newton–Schulz {n} x {ratio * n}, {name}, {report.device}",
                    f"newton_schulz, {report.device}, a={ratio}",
                    lambda x=x: newton_schulz(x),
                    torch_optim_Muon=lambda x=x: torch_muon_iteration(x),
                )


def newton_schulz_batched(report: Report, orders: list[int], dtypes: list[torch.dtype]) -> None:
    """Sixteen matrices of a shape in one call, as the optimizer makes it, against one by one."""
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for n in orders:
            x = torch.randn(16, n, n, device=report.device).to(dtype)
            report.compare(
                f"Newton–Schulz 16 of {n} x {n}, {name}, {report.device}",
                f"newton_schulz, {report.device}, batch",
                lambda x=x: newton_schulz(x),
                torch_optim_Muon=lambda x=x: [torch_muon_iteration(matrix) for matrix in x],
            )


def optimizer_step(report: Report, layers: int) -> None:
    """The whole step of a 25M-parameter model, Grokfast included, in the peers' bfloat16 and in
    float32."""
    device, lamb = report.device, SCALARS["lamb"]
    models = {name: Model25M(device, layers) for name in ("bfloat16", "float32", "pypi", "torch")}
    works = {dtype: our_step(models[dtype], dtype) for dtype in ("bfloat16", "float32")}
    peers = {}
    found = pypi_step(models["pypi"], lamb)
    if found is not None:
        peers[found[0]] = found[1]
    peers[EAGER_STEP] = torch_step(models["torch"], lamb)
    times = report.times({**works, **peers}, before=restore(models))
    parameters = sum(p.numel() for p in models["torch"].parameters()) / 1e6
    for dtype in works:
        for peer in peers:
            goal = f"step, {device}" if dtype == "bfloat16" else ""
            work = f"optimizer step, {parameters:.1f}M parameters, products in {dtype}, {device}"
            report.add(work, goal, times[dtype], peer, times[peer])


def host_work(report: Report, layers: int, rounds: int) -> None:
    """The step of as many matrices, but tiny ones: what the host does to have a step done, which a
    GPU waits for where the model is small."""
    device, lamb = report.device, SCALARS["lamb"]
    models = {name: Model25M(device, layers, shrink=32) for name in ("ours", "torch", "fused")}
    fused = torch.optim.AdamW(models["fused"].parameters(), fused=True)
    peers = {EAGER_STEP: torch_step(models["torch"], lamb), "torch.optim.AdamW, fused": fused.step}
    ours = our_step(models["ours"], "bfloat16")
    times = report.times({"ours": ours, **peers}, restore(models), rounds)
    tensors = len(list(models["ours"].parameters()))
    for peer in peers:
        report.add(f"optimizer step, {tensors} tiny tensors, {device}", "", times["ours"], peer,
                   times[peer])  # fmt: skip


def our_step(model: Model25M, dtype: str) -> Callable[[], Any]:
    config = MuonGrokfastConfig.baking().replace(ns_dtype=dtype, grokfast_lambda=SCALARS["lamb"])
    return MuonGrokfast(model.groups(), config).step


def restore(models: dict[str, Model25M]) -> Callable[[], None]:
    def restored() -> None:
        for model in models.values():
            model.restore_gradients()

    return restored


def run(device: str, quick: bool) -> Report:
    report = Report(rounds=1 if quick else 9, device=device)
    halves = [torch.float32, torch.bfloat16]
    fused_pass(report, ELEMENTS // 20 if quick else ELEMENTS)
    if device == "cuda":
        newton_schulz_alone(report, [1024] if quick else [1024, 4096, 8192], [torch.bfloat16])
        newton_schulz_batched(report, [128] if quick else [128, 256, 512, 1024], [torch.bfloat16])
    else:
        newton_schulz_alone(report, [256] if quick else [256, 512, 1024], halves)
        newton_schulz_batched(report, [64] if quick else [64, 128, 256], halves)
    layers = 1 if quick else Model25M.LAYERS
    host_work(report, layers, 1 if quick else 50)
    optimizer_step(report, layers)
    return report


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.manual_seed(0)
    reports = [run("cpu", options.quick)]
    if torch.cuda.is_available():
        reports.append(run("cuda", options.quick))
    rows = [row for report in reports for row in report.rows]
    merged: dict[str, dict[str, float]] = {"goals": {}, "ceilings": {}}
    for report in reports:
        merged["goals"] |= report.goals
        merged["ceilings"] |= report.ceilings
    publish(rows, options.json, **merged, kernels=build_info(), threads=torch.get_num_threads())
    plot_ratios(options.json, Path(options.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
