"""What the plots of every report share: the look, and the marks that they are made of."""

import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from distforge.telemetry.jsonl import MetricRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"
MODEL, BEFORE, SECOND, TARGET = "#2563eb", "#cbd5e1", "#0d9488", "#dc2626"
THIRD, FOURTH = "#d97706", "#9333ea"
_PAPER = "#ffffff"
# Colors of the page that the plots on it take up, for light and dark.
_PAGE_COLORS = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    MODEL: "model",
    BEFORE: "before",
    SECOND: "second",
    TARGET: "target",
    THIRD: "third",
    FOURTH: "fourth",
    _PAPER: "paper",
}
_DPI = 130
# Of the labels in a key's line, with their marks.
_KEY_LETTERS = 66

Panel: TypeAlias = Callable[["Axes"], None]


def draw_overview(
    headline: str, panels: Mapping[str, Panel], height_ratios: Sequence[float]
) -> bytes:
    """All panels in one PNG, two a row.

    Args:
        headline: the outcome in a line.
        panels: by what they show, row by row.
        height_ratios: of the rows; 1 is 4.3 inches.
    """
    figure = _new_figure(13.0, 4.3 * sum(height_ratios))
    figure.suptitle(headline, x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK)
    grid = figure.subplots(len(height_ratios), 2, height_ratios=height_ratios, squeeze=False)
    for axes, draw in zip(grid.flat, panels.values(), strict=True):
        draw(axes)
    return _png(figure)


def draw_apart(panels: Mapping[str, Panel]) -> dict[str, str]:
    """Each panel as an SVG element of its own, by what it shows; its text is text, and its colors
    are the variables of the page that it is put into."""
    drawn = {}
    for title, draw in panels.items():
        figure = _new_figure(5.6, 3.9)
        draw(figure.subplots())
        drawn[title] = _svg(figure, title)
    return drawn


def series(records: Sequence[MetricRecord], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric where it is finite, in the order of the steps.

    Of a step logged twice (a resumed run) the later value holds.
    """
    by_step = {r.step: r.metrics[name] for r in records if name in r.metrics}
    steps = sorted(step for step, value in by_step.items() if math.isfinite(value))
    return steps, [by_step[step] for step in steps]


def prepare(axes: "Axes", title: str, x: str | None, y: str | None) -> None:
    """The frame of a panel: its title, its grid, and the names of its axes."""
    _entitle(axes, title)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    if x is not None:
        axes.set_xlabel(x, color=MUTED, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, color=MUTED, fontsize=9)


def _entitle(axes: "Axes", title: str, key_lines: int = 1) -> None:
    """Writes the title above as many lines of a key."""
    pad = 6 + 16 * key_lines
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=pad)


def percent_axis(axes: "Axes", which: str) -> None:
    """Makes ``which`` ("x" or "y") an axis of fractions, from 0% to 100%."""
    from matplotlib.ticker import PercentFormatter

    if which == "y":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=False, axis="y")


def log_axis(axes: "Axes") -> None:
    """Makes y an axis of powers of ten, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def points_axis(axes: "Axes", values: Sequence[float]) -> None:
    """Makes x an axis of hundredths that holds zero and ``values``, and room for their texts."""
    from matplotlib.ticker import FuncFormatter

    known = [0.0, *filter(math.isfinite, values)]
    low, high = min(known), max(known)
    span = max(high - low, 0.01)
    axes.set_xlim(low - 0.04 * span if low < 0 else 0.0, high + 0.5 * span)
    # Beyond a whole there is room for texts alone.
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:g}" if value <= 1.0 else "")
    )


def right_axes(axes: "Axes") -> "Axes":
    """A second scale for y, on the right, over the same panel."""
    right = axes.twinx()
    for side in right.spines.values():
        side.set_visible(False)
    right.tick_params(labelsize=9, length=0)
    return right


def smooth_curve(
    axes: "Axes", steps: Sequence[float], values: Sequence[float], color: str, label: str = ""
) -> None:
    """A curve of every step, faint, and its running mean over it."""
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values), color=color, linewidth=2.0, label=label or None)


def bar(
    axes: "Axes", row: float, value: float, height: float, color: str, form: str = "{:.1%}"
) -> None:
    """A bar to the right with its value beside it; where that is NaN, it says so instead."""
    known = math.isfinite(value)
    axes.barh(row, value if known else 0.0, height=height, color=color)
    text = form.format(value) if known else "not measured"
    write_value(axes, value if known else 0.0, row, text)


def write_value(axes: "Axes", x: float, row: float, text: str) -> None:
    """Writes a bar's value a little to the right of ``x``, over the grid."""
    axes.annotate(
        text,
        (x, row),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
        bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )


def name_rows(axes: "Axes", labels: list[str]) -> None:
    """Names the rows of bars, the first at the top."""
    axes.set_yticks(range(len(labels)), labels, color=INK, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def key(axes: "Axes", bars: list[tuple[str, str]], target: str = "") -> None:
    """The key of a panel of bars: (label, color) each, and the line of the target if one is."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [Patch(color=color, label=label) for label, color in bars]
    if target:
        handles.append(Line2D([], [], color=TARGET, linestyle="--", label=target))
    place_key(axes, handles, [str(handle.get_label()) for handle in handles])


def labelled(axes: Sequence["Axes"]) -> tuple[list[Any], list[str]]:
    """Marks and labels of several axes together, as ``place_key`` takes them."""
    pairs = [side.get_legend_handles_labels() for side in axes]
    return [h for handles, _ in pairs for h in handles], [x for _, texts in pairs for x in texts]


def place_key(axes: "Axes", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Puts a key of one line, or two, between title and panel; nothing where there is no label."""
    if not labels:
        return
    lines = 1 if sum(len(label) + 5 for label in labels) <= _KEY_LETTERS else 2
    if lines > 1:
        _entitle(axes, axes.get_title(loc="left"), lines)
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=-(-len(labels) // lines),
        fontsize=8.5,
        frameon=False,
        labelcolor=MUTED,
        borderaxespad=0.1,
        handlelength=1.4,
        columnspacing=1.2,
    )


def say_empty(axes: "Axes", text: str = "nothing logged") -> None:
    """Says in the middle of a panel why there is nothing in it."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean over a centred window of about a fiftieth of the run, narrower at the ends."""
    reach = len(values) // 100
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(len(values)):
        # As far to the left as to the right, or the ends of a slope would be bent.
        near = min(reach, i, len(values) - 1 - i)
        means.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return means


def _new_figure(width: float, height: float) -> "Figure":
    # The object interface: pyplot would keep figures alive and choose a backend for the process.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return Figure(figsize=(width, height), layout=layout, facecolor=_PAPER)


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, facecolor=_PAPER)
    return buffer.getvalue()


def _svg(figure: "Figure", title: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    # The salt keeps the names inside one picture apart from those inside another on the page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for noise in _NOISE:
        text = noise.sub("", text)
    text = _FONT.sub(r"\1 system-ui, sans-serif", text)
    for color, name in _PAGE_COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return text.replace("<svg", '<svg role="img"', 1).strip()


# What an SVG file says that an element in a page must not: its own size, namespaces, names of
# groups (which repeat from picture to picture), styles for all of the page, and the font.
_NOISE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<style type=\"text/css\">.*?</style>",
        r" xmlns(:xlink)?=\"[^\"]*\"",
        r"(?<=<svg)(?: (?:height|width)=\"[^\"]*\")+",
        r"(?<=<g) id=\"[^\"]*\"",
        r"<!--.*?-->",
        r"font-family: [^;\"]*; ",
    )
)
_FONT = re.compile(r"(font: [^;\"]*?px) [^;\"]*")
