"""A plot of half-baking: adherence and held-out KL of every bake against its strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_strengths(part: dict[str, Any], output: Path) -> None:
    """Draw the sweeps of ``part`` (see ``Bench.strength``) to ``output``, a line a prompt."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, found in part["sweeps"].items():
        left.plot(part["strengths"], found["adherence"], marker="o", markersize=3, label=name)
        right.plot(part["strengths"], found["kl"], marker="o", markersize=3)
    left.set_ylabel("answers laid out as prompted (fraction)")
    left.legend(fontsize=7)
    right.set_ylabel("KL to the prompted champion (nats a token)")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("strength of the bake")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    plt.close(figure)
