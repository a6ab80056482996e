"""The measures of a verdict, each with its interval and its threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distforge.reports import canvas
from distforge.reports.verdict_record import MeasureRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axis ends a little beyond what any measure can reach.
_LOW, _HIGH = -1.06, 1.06


def draw_measures(axes: Axes, measures: Mapping[str, MeasureRecord]) -> None:
    """A row a measure: its interval, its estimate, and its threshold. An interval that is open, or
    leaves the axis, ends there."""
    canvas.prepare(axes, "Measures of the verdict", None, None)
    axes.grid(visible=False, axis="y")
    lowest = min([0.0, *(m.low for m in measures.values() if m.low is not None)])
    for row, measure in enumerate(measures.values()):
        low = _LOW if measure.low is None else measure.low
        high = _HIGH if measure.high is None else measure.high
        color = canvas.TARGET if measure.is_below else canvas.MODEL
        if not measure.clears and not measure.is_below:
            color = canvas.MUTED
        axes.plot([low, high], [row, row], color=color, linewidth=3.0, solid_capstyle="butt")
        if measure.estimate is not None:
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
