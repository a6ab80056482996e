"""The picture of bench_grokking: held-out accuracy against steps, one panel a task."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from modular_arithmetic import Setting

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Curves = dict[str, dict[str, list[list[float]]]]
"""Task name -> optimizer name -> one curve a seed, every ``evaluate_every`` steps."""

# Okabe & Ito's colours, told apart by colour-blind readers; dashes help in black and white.
_STYLES = (
    ("#000000", "-"),
    ("#E69F00", "-"),
    ("#0072B2", "-"),
    ("#009E73", "--"),
    ("#CC79A7", "-."),
)


def median_and_range(curves: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """(median, lowest, highest) over the seeds at each measured step.

    A run ends when it has held the threshold, so its last accuracy is carried on to the longest.
    """
    length = max(map(len, curves))
    full = [[*curve, *[curve[-1]] * (length - len(curve))] for curve in curves]
    return [(statistics.median(at), min(at), max(at)) for at in zip(*full, strict=True)]


def count_seeds(count: int) -> str:
    """As in "1 seed", "3 seeds"."""
    return f"{count} seed{'s' if count != 1 else ''}"


def plot(curves: Curves, settings: dict[str, Setting], path: Path) -> None:
    """Writes the PNG: median as a line, range over seeds as a band, logarithmic steps."""
    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.6 * len(curves) + 0.4, 4.4), sharey=True, squeeze=False
    )
    for axis, (task, by_optimizer) in zip(axes[0], curves.items(), strict=True):
        setting = settings[task]
        seeds = max(len(runs) for runs in by_optimizer.values())
        for (name, runs), (colour, dash) in zip(by_optimizer.items(), _STYLES, strict=True):
            points = median_and_range(runs)
            steps = [(i + 1) * setting.evaluate_every for i in range(len(points))]
            middle, low, high = zip(*points, strict=True)
            axis.plot(steps, middle, dash, color=colour, label=name, linewidth=1.8)
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(setting.threshold, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_title(f"{task} ({count_seeds(seeds)})")
        axis.set_xlabel("optimizer steps")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("held-out accuracy")
    axes[0][0].set_ylim(-0.02, 1.02)
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = 2 * len(curves)
    lines = -(-len(labels) // columns)
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.06 * lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
