"""The figure of S5: accuracy over the steps of reinforcement, one line a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from swap_tracking import CHANCE

_INK, _GREY, _RED = "#4477aa", "#888888", "#cc3311"


def draw(seeds: dict[str, dict[str, Any]], output: Path) -> None:
    """Draw the curves and, beside them, what everything ended at, to ``output``."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained"
    )
    for found in seeds.values():
        steps, accuracies = zip(*[(step, value) for step, _, value in found["curve"]], strict=True)
        left.plot(
            [0, *steps], [found["baked"]["own"], *accuracies], color=_INK, alpha=0.8, linewidth=1.6
        )
    left.axhline(CHANCE, color=_GREY, linewidth=0.8, linestyle="--")
    left.text(0, CHANCE + 0.01, "chance", color=_GREY, fontsize=8)
    left.axhline(0.95, color=_RED, linewidth=0.8, linestyle="--")
    left.text(0, 0.96, "wanted", color=_RED, fontsize=8)
    left.set(xlabel="optimizer steps of reinforcement", ylabel="accuracy, greedy", ylim=(0, 1.02))
    left.set_title(f"Thoughts nobody labelled, {len(seeds)} seeds", loc="left", fontsize=10)
    bars = _bars(list(seeds.values()))
    for row, (_, values, color) in enumerate(bars):
        right.barh(row, np.mean(values), color=color, height=0.65)
        right.plot(values, [row] * len(values), "k.", markersize=4)
        right.text(1.02, row, f"{np.mean(values):.1%}", va="center", fontsize=8)
    right.axvline(CHANCE, color=_GREY, linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    right.set(xlim=(0, 1), xlabel="accuracy (dots: seeds)")
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _bars(found: list[dict[str, Any]]) -> list[tuple[str, list[float], str]]:
    bars = [
        ("after RL, own thoughts", [s["trained"]["own"] for s in found], _INK),
        ("partial bake, own thoughts", [s["baked"]["own"] for s in found], "#99bbdd"),
        (
            "fine-tuned on answers instead",
            [max(s["fine_tuned"]["own"], s["fine_tuned"]["none"]) for s in found],
            _GREY,
        ),
    ]
    for control in ("shuffled", "random", "filler", "none"):
        values = [s["trained"][control] for s in found]
        bars.append((f"after RL, {control} thoughts", values, _GREY))
    for name, condition in (("direct", "none"), ("filler", "filler")):
        values = [s[name][condition] for s in found if name in s]
        if values:
            bars.append((f"trained without thoughts: {name}", values, _GREY))
    return bars
