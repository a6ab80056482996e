"""A plot of half-baking: adherence and held-out KL of every bake against its strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_strengths(part: dict[str, Any], output: Path) -> None:
    """Draw the sweeps of ``part`` (see ``Bench.strength``) to ``output``, a line a prompt."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
    strengths = part["strengths"]
    for name, found in part["sweeps"].items():
        left.plot(strengths, found["graded"]["adherence"], marker="o", markersize=3, label=name)
        middle.plot(strengths, found["adherence"], marker="o", markersize=3)
        right.plot(strengths, found["kl"], marker="o", markersize=3)
    for axes in (left, middle):
        axes.set_ylabel("answers laid out as prompted (fraction)")
    left.set_xlabel("graded strength (share of the answers that the whole bake turns)")
    left.legend(fontsize=7)
    right.set_ylabel("KL to the prompted champion (nats a token)")
    right.set_yscale("log")
    for axes in (middle, right):
        axes.set_xlabel("strength as a scale of the bake")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    plt.close(figure)
