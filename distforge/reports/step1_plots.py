"""The plots of step 1, drawn without a display."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.reports import canvas
from distforge.reports.formats import percent
from distforge.reports.step1_summary import Step1Summary
from distforge.telemetry import metrics as names
from distforge.telemetry.jsonl import MetricRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def progress_panels(records: Sequence[MetricRecord]) -> dict[str, canvas.Panel]:
    """The curves of a run that has no outcome yet."""
    plots = RunPlots(records, None)
    return {
        "Training loss": plots.draw_loss,
        "Accuracy over training": plots.draw_accuracy,
    }


class RunPlots:
    """The panels of a run's report, each an ``(axes) -> None`` over the same data.

    Args:
        records: what ``read_metrics`` gave; of a step logged twice (a resumed run) the later holds.
        summary: the outcome; None of a run that has not ended, whose curves alone can be drawn.
    """

    def __init__(self, records: Sequence[MetricRecord], summary: Step1Summary | None) -> None:
        self._records = records
        self._outcome = summary
        self.panels: dict[str, canvas.Panel] = {
            "Training loss": self.draw_loss,
            "Accuracy over training": self.draw_accuracy,
        }
        # Of questions that name no strategy there is nothing by strategy.
        if summary is not None and summary.accuracy:
            self.panels["Accuracy by strategy"] = self.draw_strategies
            self.panels["Token usage"] = self.draw_usage

    @property
    def _summary(self) -> Step1Summary:
        assert self._outcome is not None
        return self._outcome

    def overview(self) -> bytes:
        """All panels in one PNG."""
        verdict = "converged" if self._summary.converged else "not converged"
        headline = (
            f"Step 1: {verdict}, {percent(self._summary.accuracy_overall)} on held-out questions"
        )
        return canvas.draw_overview(headline, self.panels, (1.0, 1.15)[: len(self.panels) // 2])

    def draw_loss(self, axes: "Axes") -> None:
        """Training loss over optimizer steps: every step, and its running mean."""
        canvas.prepare(axes, "Training loss", "optimizer step", "nats a token")
        steps, values = canvas.series(self._records, names.TRAIN_LOSS)
        if not steps:
            steps, values = canvas.series(self._records, names.BAKING_LOSS)
        if not steps:
            canvas.say_empty(axes)
            return
        canvas.smooth_curve(axes, steps, values, canvas.MODEL)
        axes.set_xlim(left=0)
        if min(values) > 0:  # most of a run lies in the lowest tenth of a linear axis
            canvas.log_axis(axes)

    def draw_accuracy(self, axes: "Axes") -> None:
        """Generated and token accuracy over optimizer steps, the target, and the champion."""
        canvas.prepare(axes, "Accuracy over training", "optimizer step", None)
        canvas.percent_axis(axes, "y")
        token_steps, token = canvas.series(self._records, names.TRAIN_TOKEN_ACCURACY)
        if token_steps:
            axes.plot(
                token_steps,
                canvas.running_mean(token),
                color=canvas.SECOND,
                linewidth=1.3,
                alpha=0.8,
                label="tokens (training)",
            )
        steps, values = canvas.series(self._records, names.BAKING_ACCURACY_OVERALL)
        if steps:
            axes.plot(
                steps,
                values,
                color=canvas.MODEL,
                linewidth=2.0,
                marker="o",
                markersize=4.5,
                label="answers (validation)",
            )
        if not steps and not token_steps:
            canvas.say_empty(axes)
        if self._outcome is not None:
            self._draw_marks(axes)
        axes.set_xlim(left=0)
        canvas.place_key(axes, *axes.get_legend_handles_labels())

    def _draw_marks(self, axes: "Axes") -> None:
        target = self._summary.targets.accuracy_overall
        axes.axhline(
            target, color=canvas.TARGET, linestyle="--", linewidth=1.3, label=f"target {target:.0%}"
        )
        for label, level, style in (
            ("champion", self._summary.champion_accuracy, ":"),
            ("champion with prompts", self._summary.champion_prompted_accuracy, "-."),
        ):
            if math.isfinite(level):
                label = f"{label} {level:.1%}"
                axes.axhline(level, color=canvas.MUTED, linestyle=style, linewidth=1.5, label=label)

    def draw_strategies(self, axes: "Axes") -> None:
        """Champion against baked model by strategy, with the least that each must reach."""
        canvas.prepare(axes, "Accuracy by strategy", None, None)
        canvas.percent_axis(axes, "x")
        before, after = self._summary.champion_accuracy_by_strategy, self._summary.accuracy
        for row, strategy in enumerate(STRATEGIES):
            canvas.bar(axes, row - 0.2, before.get(strategy, math.nan), 0.32, canvas.BEFORE)
            canvas.bar(axes, row + 0.2, after.get(strategy, math.nan), 0.42, canvas.MODEL)
        target = self._summary.targets.accuracy_strategy
        axes.axvline(target, color=canvas.TARGET, linestyle="--", linewidth=1.3)
        canvas.name_rows(axes, [strategy.replace("_", " ") for strategy in STRATEGIES])
        bars = [("champion", canvas.BEFORE), ("baked", canvas.MODEL)]
        canvas.key(axes, bars, f"target {target:.1%}")

    def draw_usage(self, axes: "Axes") -> None:
        """How often free generations use each kind of thinking token, against the targets."""
        canvas.prepare(axes, "Token usage in free generations", None, None)
        canvas.percent_axis(axes, "x")
        for row, usage in enumerate(USAGE_TYPES):
            used = self._summary.token_usage.get(usage, math.nan)
            canvas.bar(axes, row, used, 0.5, canvas.SECOND)
            target = self._summary.targets.token_usage[usage]
            axes.plot(
                [target, target], [row - 0.38, row + 0.38], color=canvas.TARGET, linewidth=2.0
            )
        canvas.name_rows(axes, list(USAGE_TYPES))
        canvas.key(axes, [("baked", canvas.SECOND)], "target")
