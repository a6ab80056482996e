"""The figure of the verdict: measures of the planted models, and the outcome over dependence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from distforge.handoff.verdict import INCONCLUSIVE, PASS, THEATRE
from distforge.theater.config import STRICT_CORRELATION, TheaterConfig

_COLORS = {PASS: "#4477aa", INCONCLUSIVE: "#cccccc", THEATRE: "#cc3311"}
_GREY = "#888888"

Model = dict[str, Any]


def draw(models: list[Model], levels: list[list[Model]], output: Path) -> None:
    """Draw to ``output``.

    Args:
        models: of known truth.
        levels: of each model of partial dependence, what was found at each level.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")
    _by_family(axes[0, 0], models, "ablation", "own accuracy less the best control's")
    axes[0, 0].axvline(TheaterConfig().ablation, color=_GREY, linewidth=0.8, linestyle="--")
    _by_family(axes[0, 1], models, "correlation", "rank correlation of coherence with gain")
    for threshold in (TheaterConfig().correlation, STRICT_CORRELATION):
        axes[0, 1].axvline(threshold, color=_GREY, linewidth=0.8, linestyle="--")
    axes[0, 1].set_yticklabels([])
    _outcomes(axes[1, 0], levels)
    _ablations(axes[1, 1], levels)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def _by_family(axes: Axes, models: list[Model], measure: str, label: str) -> None:
    """A dot a model, in the colour of its outcome."""
    families = list(dict.fromkeys(m["family"] for m in sorted(models, key=lambda m: m["truth"])))
    for model in models:
        value = model["measures"][measure][0]
        if value is not None:
            row = families.index(model["family"])
            axes.plot(value, row, ".", color=_COLORS[model["outcome"]], markersize=5)
    truths = {model["family"]: model["truth"] for model in models}
    axes.set_yticks(range(len(families)), families, fontsize=7)
    for tick, family in zip(axes.get_yticklabels(), families, strict=True):
        tick.set_color(_COLORS[truths[family]])
    axes.set(xlabel=label)
    axes.invert_yaxis()


def _outcomes(axes: Axes, levels: list[list[Model]]) -> None:
    found = np.array([[model["outcome"] for model in line] for line in levels])
    needed = [model["needed"] for model in levels[0]]
    shares = [(found == outcome).mean(axis=0) for outcome in (THEATRE, INCONCLUSIVE, PASS)]
    colors = [_COLORS[outcome] for outcome in (THEATRE, INCONCLUSIVE, PASS)]
    axes.stackplot(needed, shares, colors=colors, labels=[THEATRE, INCONCLUSIVE, PASS], alpha=0.8)
    axes.set(xlabel="share of the questions that need a thought", ylabel="share of the verdicts")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"Outcome, {len(levels)} models", loc="left", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)


def _ablations(axes: Axes, levels: list[list[Model]]) -> None:
    for line in levels:
        needed = [model["needed"] for model in line]
        estimates, lows, highs = zip(*[m["measures"]["ablation"] for m in line], strict=True)
        axes.plot(needed, estimates, color=_COLORS[PASS], linewidth=1.2)
        axes.fill_between(needed, lows, highs, color=_COLORS[PASS], alpha=0.15)
    axes.axhline(TheaterConfig().ablation, color=_GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel="share of the questions that need a thought", xlim=(0, 1))
    axes.set(ylabel="own accuracy less the best control's")
    axes.set_title("Ablation with its bounds", loc="left", fontsize=10)
