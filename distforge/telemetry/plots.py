"""The plots of a run, drawn without a display."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.telemetry import metrics as names
from distforge.telemetry.jsonl import MetricRecord
from distforge.telemetry.summary import BakingSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_BAKED, _CHAMPION, _SECOND, _TARGET = "#2563eb", "#cbd5e1", "#0d9488", "#dc2626"
_DPI = 130


class RunPlots:
    """The panels of a run's report, each an ``(axes) -> None`` over the same data.

    Args:
        records: what ``read_metrics`` gave; of a step logged twice (a resumed run) the later holds.
        summary: the outcome.
    """

    def __init__(self, records: Sequence[MetricRecord], summary: BakingSummary) -> None:
        self._records = records
        self._summary = summary

    def overview(self) -> bytes:
        """All panels in one PNG."""
        figure = _new_figure(13.0, 9.2)
        verdict = "converged" if self._summary.converged else "not converged"
        figure.suptitle(
            f"Step 1: {verdict}, {self._summary.accuracy_overall:.1%} on held-out questions",
            x=0.012,
            ha="left",
            fontsize=15,
            fontweight="bold",
            color=_INK,
        )
        axes = figure.subplots(2, 2, height_ratios=[1.0, 1.15])
        self.draw_loss(axes[0, 0])
        self.draw_accuracy(axes[0, 1])
        self.draw_strategies(axes[1, 0])
        self.draw_usage(axes[1, 1])
        return _png(figure)

    def panels(self) -> dict[str, bytes]:
        """Each panel as a PNG of its own, by what it shows."""
        drawn = {}
        for title, draw in (
            ("Training loss", self.draw_loss),
            ("Accuracy over training", self.draw_accuracy),
            ("Accuracy by strategy", self.draw_strategies),
            ("Token usage", self.draw_usage),
        ):
            figure = _new_figure(6.6, 4.3)
            draw(figure.subplots())
            drawn[title] = _png(figure)
        return drawn

    def draw_loss(self, axes: "Axes") -> None:
        """Training loss over optimizer steps: every step, and its running mean."""
        _prepare(axes, "Training loss", "optimizer step", "nats a token")
        steps, values = self._series(names.TRAIN_LOSS)
        if not steps:
            steps, values = self._series(names.BAKING_LOSS)
        if not steps:
            _say_empty(axes)
            return
        axes.plot(steps, values, color=_BAKED, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(values), color=_BAKED, linewidth=2.0)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    def draw_accuracy(self, axes: "Axes") -> None:
        """Generated and token accuracy over optimizer steps, the target, and the champion."""
        _prepare(axes, "Accuracy over training", "optimizer step", None)
        _percent_axis(axes, "y")
        token_steps, token = self._series(names.TRAIN_TOKEN_ACCURACY)
        if token_steps:
            axes.plot(
                token_steps,
                _running_mean(token),
                color=_SECOND,
                linewidth=1.3,
                alpha=0.8,
                label="tokens (training)",
            )
        steps, values = self._series(names.BAKING_ACCURACY_OVERALL)
        if steps:
            axes.plot(
                steps,
                values,
                color=_BAKED,
                linewidth=2.0,
                marker="o",
                markersize=4.5,
                label="answers (validation)",
            )
        if not steps and not token_steps:
            _say_empty(axes)
        self._draw_marks(axes)
        axes.set_xlim(left=0)
        _place_key(axes, *axes.get_legend_handles_labels())

    def _draw_marks(self, axes: "Axes") -> None:
        target = self._summary.targets.accuracy_overall
        axes.axhline(
            target, color=_TARGET, linestyle="--", linewidth=1.3, label=f"target {target:.0%}"
        )
        champion = self._summary.champion_accuracy
        if math.isfinite(champion):
            axes.axhline(
                champion,
                color=_MUTED,
                linestyle=":",
                linewidth=1.5,
                label=f"champion {champion:.1%}",
            )

    def draw_strategies(self, axes: "Axes") -> None:
        """Champion against baked model by strategy, with the least that each must reach."""
        _prepare(axes, "Accuracy by strategy", None, None)
        _percent_axis(axes, "x")
        before = self._summary.champion_accuracy_by_strategy
        labels = [strategy.replace("_", " ") for strategy in STRATEGIES]
        for row, strategy in enumerate(STRATEGIES):
            _bar(axes, row - 0.2, before.get(strategy, math.nan), 0.32, _CHAMPION)
            _bar(axes, row + 0.2, self._summary.accuracy.get(strategy, math.nan), 0.42, _BAKED)
        target = self._summary.targets.accuracy_strategy
        axes.axvline(target, color=_TARGET, linestyle="--", linewidth=1.3)
        _name_rows(axes, labels)
        _key(axes, [("champion", _CHAMPION), ("baked", _BAKED)], f"target {target:.1%}")

    def draw_usage(self, axes: "Axes") -> None:
        """How often free generations use each kind of thinking token, against the targets."""
        _prepare(axes, "Token usage in free generations", None, None)
        _percent_axis(axes, "x")
        for row, usage in enumerate(USAGE_TYPES):
            _bar(axes, row, self._summary.token_usage.get(usage, math.nan), 0.5, _SECOND)
            target = self._summary.targets.token_usage[usage]
            axes.plot([target, target], [row - 0.38, row + 0.38], color=_TARGET, linewidth=2.0)
        _name_rows(axes, list(USAGE_TYPES))
        _key(axes, [("baked", _SECOND)], "target")

    def _series(self, name: str) -> tuple[list[int], list[float]]:
        by_step = {r.step: r.metrics[name] for r in self._records if name in r.metrics}
        steps = sorted(step for step, value in by_step.items() if math.isfinite(value))
        return steps, [by_step[step] for step in steps]


def _new_figure(width: float, height: float) -> "Figure":
    # The object interface: pyplot would keep figures alive and choose a backend for the process.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


def _prepare(axes: "Axes", title: str, x: str | None, y: str | None) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=_INK, pad=22)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    if x is not None:
        axes.set_xlabel(x, color=_MUTED, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, color=_MUTED, fontsize=9)


def _percent_axis(axes: "Axes", which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    if which == "y":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=False, axis="y")


def _bar(axes: "Axes", row: float, value: float, height: float, color: str) -> None:
    known = math.isfinite(value)
    axes.barh(row, value if known else 0.0, height=height, color=color)
    text = f"{value:.1%}" if known else "not measured"
    x = (value if known else 0.0) + 0.012
    axes.text(
        x,
        row,
        text,
        va="center",
        fontsize=8,
        color=_INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
    )


def _name_rows(axes: "Axes", labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=_INK, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _key(axes: "Axes", bars: list[tuple[str, str]], target: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [Patch(color=color, label=label) for label, color in bars]
    handles.append(Line2D([], [], color=_TARGET, linestyle="--", label=target))
    _place_key(axes, handles, [str(handle.get_label()) for handle in handles])


def _place_key(axes: "Axes", handles: Sequence[Any], labels: Sequence[str]) -> None:
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(labels),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0.1,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _say_empty(axes: "Axes") -> None:
    axes.text(
        0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color=_MUTED
    )


def _running_mean(values: list[float]) -> list[float]:
    """The mean over a centred window of about a fiftieth of the run, narrower at the ends."""
    reach = len(values) // 100
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for i in range(len(values)):
        # As far to the left as to the right, or the ends of a slope would be bent.
        near = min(reach, i, len(values) - 1 - i)
        means.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return means
