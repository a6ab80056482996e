"""A plot of a benchmark's JSON: one bar a row, with its goal where it has one."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_ratios(result: Path, output: Path) -> None:
    """Draw ``ratio`` of every row of ``result`` to ``output``.

    ``result["goals"]`` maps "work | peer" to the ratio that was aimed at.
    """
    data = json.loads(result.read_text(encoding="utf-8"))
    rows = data["rows"][::-1]
    goals = data.get("goals", {})
    labels = [f"{row['work']}\nagainst {row['peer']}" for row in rows]
    figure, axes = plt.subplots(figsize=(10, 0.5 * len(rows) + 1.5))
    ratios = [row["ratio"] for row in rows]
    axes.barh(range(len(rows)), ratios, color="#4477aa", height=0.6)
    for position, row in enumerate(rows):
        goal = goals.get(f"{row['work']} | {row['peer']}", 0.0)
        if goal:
            axes.plot([goal, goal], [position - 0.4, position + 0.4], color="#cc3311", linewidth=2)
        axes.annotate(
            f"{row['ratio']:.2f}",
            (max(row["ratio"], goal), position),  # beside the mark, where the bar ends before it
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("times as fast (red: goal)")
    axes.set_xlim(0, 1.15 * max(ratios))
    axes.margins(y=0.01)
    machine = data["machine"]
    axes.set_title(f"{machine['cpu']}, {machine['cores']} cores; {machine['gpu'] or 'no GPU'}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=110, bbox_inches="tight")
    plt.close(figure)
