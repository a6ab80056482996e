"""The figure of free text: bits a token over the size of the model, and what thoughts save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_LINES = {
    "with": ("#4477aa", "with thoughts"),
    "without": ("#99bbdd", "the same model without"),
    "continued": ("#cc3311", "trained on instead"),
}


def draw(sizes: dict[str, dict[str, Any]], output: Path) -> None:
    """Draw both to ``output``."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    parameters = [found["parameters"] for found in sizes.values()]
    for name, (color, label) in _LINES.items():
        values = [found["bits"][name] for found in sizes.values()]
        left.plot(parameters, values, "o-", color=color, label=label, linewidth=1.6)
    left.set_title("Held-out bits a token", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for name in ("without", "continued"):
        color, label = _LINES[name]
        gains = [found["gains"][name] for found in sizes.values()]
        means = [gain["mean"] for gain in gains]
        errors = [
            [gain["mean"] - gain["low"] for gain in gains],
            [gain["high"] - gain["mean"] for gain in gains],
        ]
        right.errorbar(parameters, means, errors, fmt="o-", color=color, label=f"against: {label}")
    right.axhline(0, color="#888888", linewidth=0.8, linestyle="--")
    right.set_title("Bits a token that thoughts save, 95% over files", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="parameters")
        axes.set_xticks(parameters, sizes)
        axes.set_xticks([], minor=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=120)
    plt.close(figure)
