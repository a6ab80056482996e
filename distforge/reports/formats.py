"""Numbers as a reader sees them; a dash where nothing was measured."""

import math
from collections.abc import Callable

from distforge.evaluation.intervals import proportion


def percent(fraction: float) -> str:
    """``0.8765`` as ``87.7%``; a dash where nothing was measured."""
    return f"{fraction:.1%}" if math.isfinite(fraction) else "–"


def points(difference: float) -> str:
    """``0.215`` as ``+21.5 points``; a dash where nothing was measured."""
    return f"{100 * difference:+.1f} points" if math.isfinite(difference) else "–"


def bits(difference: float) -> str:
    """``0.215`` as ``+0.215 bits``; a dash where nothing was measured."""
    return f"{difference:+.3f} bits" if math.isfinite(difference) else "–"


def plain(difference: float) -> str:
    """``0.215`` as ``+0.215``; a dash where nothing was measured."""
    return f"{difference:+.3f}" if math.isfinite(difference) else "–"


def interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """``[+19.8, +23.2]``: numbers as ``show`` writes them, without the unit."""
    if not math.isfinite(low + high):
        return "–"
    return f"[{show(low).split()[0]}, {show(high).split()[0]}]"


def accuracy_of(fraction: float, count: int) -> str:
    """``96.4% [95.5, 97.1]``: with Wilson's 95% interval where ``count`` questions were asked; a
    bare percentage where that is not known (0)."""
    if not count or not math.isfinite(fraction):
        return percent(fraction)
    between = proportion(round(fraction * count), count)
    return f"{fraction:.1%} [{100 * between.low:.1f}, {100 * between.high:.1f}]"
