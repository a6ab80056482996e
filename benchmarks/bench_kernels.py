"""The native operators against what they replace.

    python benchmarks/bench_kernels.py --json benchmarks/results/kernels.json

Every row is a median of rounds in which ours and the peer take turns; what the machine can do at
all (a copy of as many bytes, a matrix product) is measured in the same run. Beside the JSON stands
a plot of the ratios. Peers are eager torch in as few operations as it has, the same compiled,
torch.optim.Muon and, where they are installed, DeepSpeed's Muon and PyPI's pytorch-optimizer; all
iterate in the dtype that ours does. Rows of a GPU appear where one is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import arguments, publish
from kernel_peers import (
    Iteration,
    Model25M,
    batched_iteration,
    best_eager_pass,
    deepspeed_iteration,
    deepspeed_step,
    pypi_gram_iteration,
    pypi_step,
    torch_muon_iteration,
    torch_step,
)
from kernel_report import Report
from ratio_plot import plot_ratios

from distforge.ops import (
    build_info,
    grokfast_momentum_into_,
    newton_schulz,
    orthogonal_update_,
)
from distforge.optim import MuonGrokfast, MuonGrokfastConfig
from distforge.optim.precision import cpu_multiplies_bfloat16, fastest_dtype

SCALARS = {"alpha": 0.98, "lamb": 0.2, "beta": 0.95, "nesterov": True}
ELEMENTS = 20_000_000
COPY = "copy of as many bytes"
EAGER_STEP = "torch.optim.Muon + AdamW + eager Grokfast"


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
    best = {name: SCALARS[name] for name in ("alpha", "lamb", "beta")}
    compiled = torch.compile(best_eager_pass)
    times = report.times(
        {
            "ours": lambda: grokfast_momentum_into_([g], [h], [m], [u], **SCALARS),
            "bf16": lambda: grokfast_momentum_into_([g], [h], [m], [half], **SCALARS),
            "best eager": lambda: best_eager_pass(g, h, m, u, **best),
            "torch.compile": lambda: compiled(g, h, m, u, **best),
            COPY: lambda: target.copy_(source),
        }
    )
    report.ceilings[f"copy, {device}, GB/s"] = 24 * elements / times[COPY] / 1e9
    for peer in ("best eager", "torch.compile", COPY):
        goal = f"fused pass, {device}, {peer}"
        report.add(f"fused pass, {size}", goal, times["ours"], peer, times[peer])
    report.add(f"fused pass, {size}, u in bf16", "", times["bf16"], COPY, times[COPY])
    weights = {"lr": 1e-4, "weight_decay": 0.01, "scale": 1.0}
    report.compare(
        f"fused update, {size}",
        "",
        lambda: orthogonal_update_([g], [u], **weights),
        {"eager torch": lambda: g.mul_(1 - 1e-6).add_(u, alpha=-1e-4)},
    )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measured_dtypes(report: Report) -> list[torch.dtype]:
    """In which the iterations are compared: on a GPU what "auto" is there, on a CPU float32, and
    bfloat16 where the CPU multiplies it. Elsewhere the peers would need an hour for its rows."""
    if report.device != "cpu":
        return [fastest_dtype(torch.device(report.device))]
    if cpu_multiplies_bfloat16():
        return [torch.float32, torch.bfloat16]
    report.left_out.append("bfloat16 on the CPU, which has no instructions for it")
    return [torch.float32]


def iteration_peers() -> dict[str, Iteration]:
    peers: dict[str, Iteration] = {"torch.optim.Muon": torch_muon_iteration}
    gram_forms = [found for found in (pypi_gram_iteration(), deepspeed_iteration()) if found]
    return peers | dict(gram_forms)


def newton_schulz_alone(report: Report, orders: list[int], dtypes: list[torch.dtype]) -> None:
    """One square and one 1 : 4 matrix at a time."""
    for dtype in dtypes:
        name = name_of(dtype)
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
                    {
                        peer: lambda x=x, iteration=iteration: iteration(x)
                        for peer, iteration in iteration_peers().items()
                    },
                )


def newton_schulz_batched(report: Report, orders: list[int], dtypes: list[torch.dtype]) -> None:
    """Sixteen matrices of a shape in one call, as the optimizer makes it."""
    for dtype in dtypes:
        name = name_of(dtype)
        for n in orders:
            x = torch.randn(16, n, n, device=report.device).to(dtype)
            report.compare(
                f"Newton–Schulz 16 of {n} x {n}, {name}, {report.device}",
                f"newton_schulz, {report.device}, batch",
                lambda x=x: newton_schulz(x),
                {"torch.optim.Muon's, batched": lambda x=x: batched_iteration(x)},
            )


def optimizer_step(report: Report, layers: int, dtypes: list[torch.dtype]) -> None:
    """The whole step of a 25M-parameter model, Grokfast included, all with products in one
    dtype."""
    device, lamb = report.device, SCALARS["lamb"]
    models: list[Model25M] = []
    works: dict[tuple[str, torch.dtype], Callable[[], Any]] = {}

    def model() -> Model25M:
        models.append(Model25M(device, layers))
        return models[-1]

    for dtype in dtypes:
        works["ours", dtype] = our_step(model(), dtype)
        for found in (pypi_step(model(), lamb, dtype), deepspeed_step(model(), dtype)):
            if found is not None:
                works[found[0], dtype] = found[1]
        works[EAGER_STEP, dtype] = torch_step(model(), lamb, dtype)
    times = report.times(works, before=restore(models))
    parameters = sum(p.numel() for p in models[0].parameters()) / 1e6
    work = f"optimizer step, {parameters:.1f}M parameters, {device}"
    for (peer, dtype), seconds in times.items():
        if peer == "ours":
            continue
        name = name_of(dtype)
        report.add(f"{work}, {name}", f"step, {device}", times["ours", dtype], peer, seconds)


def host_work(report: Report, layers: int, rounds: int) -> None:
    """The step of as many matrices, but tiny ones: what the host does to have a step done, which a
    GPU waits for where the model is small."""
    device, lamb = report.device, SCALARS["lamb"]
    dtype = fastest_dtype(torch.device(device))
    mine, eager, fused = models = [Model25M(device, layers, shrink=32) for _ in range(3)]
    peers = {
        EAGER_STEP: torch_step(eager, lamb, dtype),
        "torch.optim.AdamW, fused": torch.optim.AdamW(fused.parameters(), fused=True).step,
    }
    ours = our_step(mine, dtype)
    times = report.times({"ours": ours, **peers}, restore(models), rounds)
    tensors = len(list(mine.parameters()))
    for peer in peers:
        report.add(f"optimizer step, {tensors} tiny tensors, {device}", "", times["ours"], peer,
                   times[peer])  # fmt: skip


def our_step(model: Model25M, dtype: torch.dtype) -> Callable[[], Any]:
    config = MuonGrokfastConfig.baking().replace(
        ns_dtype=name_of(dtype), grokfast_lambda=SCALARS["lamb"]
    )
    return MuonGrokfast(model.groups(), config).step


def restore(models: list[Model25M]) -> Callable[[], None]:
    def restored() -> None:
        for model in models:
            model.restore_gradients()

    return restored


def run(device: str, quick: bool) -> Report:
    report = Report(rounds=1 if quick else 9, device=device)
    dtypes = measured_dtypes(report)
    fused_pass(report, ELEMENTS // 20 if quick else ELEMENTS)
    if device == "cuda":
        newton_schulz_alone(report, [1024] if quick else [1024, 4096, 8192], dtypes)
        newton_schulz_batched(report, [128] if quick else [128, 256, 512, 1024], dtypes)
    else:
        newton_schulz_alone(report, [256] if quick else [256, 512, 1024], dtypes)
        newton_schulz_batched(report, [64] if quick else [64, 128, 256], dtypes)
    layers = 1 if quick else Model25M.LAYERS
    host_work(report, layers, 1 if quick else 50)
    optimizer_step(report, layers, dtypes)
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
    left_out = [line for report in reports for line in report.left_out]
    publish(
        rows,
        options.json,
        **merged,
        left_out=left_out,
        kernels=build_info(),
        threads=torch.get_num_threads(),
    )
    for line in left_out:
        print(f"Left out: {line}.")
    plot_ratios(options.json, Path(options.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
