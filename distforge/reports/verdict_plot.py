"""The measures of a verdict, each with its interval and its threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distforge.handoff.verdict import Measure
from distforge.reports import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axis ends a little beyond what any measure can reach.
_LOW, _HIGH = -1.06, 1.06


def draw_measures(axes: Axes, measures: Mapping[str, Measure]) -> None:
    """A row a measure: its interval, its estimate, and its threshold. An interval that is open, or
    leaves the axis, ends there."""
    canvas.prepare(axes, "Measures of the verdict", None, None)
    axes.grid(visible=False, axis="y")
    lowest = min([0.0, *(m.low for m in measures.values() if math.isfinite(m.low))])
    for row, measure in enumerate(measures.values()):
        low, high = max(measure.low, _LOW), min(measure.high, _HIGH)
        color = canvas.TARGET if measure.is_below else canvas.MODEL
        if not measure.clears and not measure.is_below:
            color = canvas.MUTED
        axes.plot([low, high], [row, row], color=color, linewidth=3.0, solid_capstyle="butt")
        if math.isfinite(measure.estimate):
            axes.plot([measure.estimate], [row], color=color, marker="o", markersize=7)
        else:
            lowest = min(lowest, low)
        mark = [measure.threshold, measure.threshold]
        axes.plot(mark, [row - 0.3, row + 0.3], color=canvas.INK, linestyle="--", linewidth=1.6)
    axes.set_xlim(max(_LOW, math.floor(10 * lowest) / 10 - 0.06), _HIGH)
    canvas.name_rows(axes, [name.replace("_", "\n") for name in measures])
    canvas.key(axes, [("estimate and interval", canvas.MODEL)])
    axes.set_xlabel("dashed: the threshold, which the whole interval must exceed", fontsize=9)
    axes.xaxis.label.set_color(canvas.MUTED)
