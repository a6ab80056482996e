"""The plots of step 2, drawn without a display."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distforge.data.strategies import STRATEGIES
from distforge.reports import canvas
from distforge.reports.comparison import lead_text
from distforge.reports.formats import interval, percent, points
from distforge.reports.step2_summary import (
    CONTROL_NAMES,
    Difference,
    Step2Summary,
)
from distforge.telemetry import metrics as names
from distforge.telemetry.jsonl import MetricRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROL_COLORS = {
    "shuffled": canvas.THIRD,
    "random": canvas.FOURTH,
    "filler": canvas.SECOND,
    "none": canvas.MUTED,
}
# More points than these are shown as a line alone.
_MOST_MARKERS = 40
_COHERENCES = {
    "composite": canvas.MODEL,
    "semantic": canvas.SECOND,
    "syntactic": canvas.THIRD,
    "predictive": canvas.FOURTH,
}


def progress_panels(records: Sequence[MetricRecord]) -> dict[str, canvas.Panel]:
    """The curves of a run that has no outcome yet."""
    plots = ReinforcementPlots(records, None)
    asks = any(names.RL_ACCURACY["own"] in record.metrics for record in records)
    reached = (
        {"Accuracy over training": plots.draw_accuracy}
        if asks
        else {"Bits a token over training": plots.draw_bits}
    )
    return {
        "Reward": plots.draw_reward,
        **reached,
        "Entropy and KL": plots.draw_drift,
        "Length and coherence": plots.draw_thoughts,
    }


class ReinforcementPlots:
    """The panels of step 2's report, each an ``(axes) -> None`` over the same data.

    Args:
        records: what ``read_metrics`` gave; of a step logged twice (a resumed run) the later holds.
        summary: the outcome; None of a run that has not ended, whose curves alone can be drawn.

    Curves go over the episodes generated in all, those of abandoned branches included; a vertical
    line marks where the run went back.
    """

    def __init__(self, records: Sequence[MetricRecord], summary: Step2Summary | None) -> None:
        self._records = records
        self._outcome = summary
        self._episodes_a_step = _episodes_a_step(records, summary)
        curves: tuple[str, canvas.Panel] = ("Bits a token over training", self.draw_bits)
        bars: tuple[str, canvas.Panel] = ("Bits a token", self.draw_final_bits)
        if summary is not None and summary.task == "questions":
            curves = ("Accuracy over training", self.draw_accuracy)
            bars = ("Accuracy by strategy", self.draw_strategies)
        self.panels: dict[str, canvas.Panel] = {
            "Reward": self.draw_reward,
            curves[0]: curves[1],
            "Entropy and KL": self.draw_drift,
            "Length and coherence": self.draw_thoughts,
            bars[0]: bars[1],
            "What a thought is worth": self.draw_ablations,
        }

    @property
    def _summary(self) -> Step2Summary:
        assert self._outcome is not None
        return self._outcome

    def overview(self) -> bytes:
        """All panels in one PNG."""
        return canvas.draw_overview(self._headline(), self.panels, (1.0, 1.0, 1.1))

    def draw_reward(self, axes: "Axes") -> None:
        """Reward over episodes: every step's, and the mean of the last 100 episodes."""
        canvas.prepare(axes, "Reward", "episode", None)
        episodes, values = self._series(names.RL["reward"])
        mean_episodes, means = self._series(names.RL["avg_reward"])
        if episodes or mean_episodes:
            label = "of a step"
            axes.plot(episodes, values, color=canvas.MODEL, alpha=0.35, linewidth=0.9, label=label)
            label = "mean of the last 100 episodes"
            axes.plot(mean_episodes, means, color=canvas.MODEL, linewidth=2.0, label=label)
        self._finish(axes)

    def draw_accuracy(self, axes: "Axes") -> None:
        """Accuracy with own thoughts against the controls, and the baked model's."""
        canvas.prepare(axes, "Accuracy by the thought it is given", "episode", None)
        canvas.percent_axis(axes, "y")
        self._curve(axes, names.RL_ACCURACY["own"], "own", canvas.MODEL, 2.2)
        for control, color in _CONTROL_COLORS.items():
            self._curve(axes, names.RL_ACCURACY[control], control, color, 1.2)
        baked = self._outcome.before_accuracy if self._outcome else math.nan
        self._finish(axes, level=baked, level_name=f"baked model {percent(baked)}")

    def draw_bits(self, axes: "Axes") -> None:
        """Bits a target token with and without thoughts, and the baked model's."""
        canvas.prepare(axes, "Bits a token", "episode", None)
        self._curve(axes, names.RL_BITS_WITH_THOUGHTS, "with thoughts", canvas.MODEL, 2.2)
        self._curve(axes, names.RL_BITS_WITHOUT, "without thoughts", canvas.MUTED, 1.2)
        bits = self._outcome.bits if self._outcome else {}
        baked = bits.get("baked_with_thoughts", math.nan)
        self._finish(axes, level=baked, level_name=f"baked model, with thoughts {baked:.3f}")

    def draw_drift(self, axes: "Axes") -> None:
        """Entropy of the thoughts (left) and their KL to the baked model (right)."""
        canvas.prepare(axes, "Entropy and KL, nats a thought token", "episode", None)
        right = canvas.right_axes(axes)
        for side, name, label, color in (
            (axes, names.RL_ENTROPY, "entropy (left)", canvas.SECOND),
            (right, names.RL["kl_divergence"], "KL to the baked model (right)", canvas.MODEL),
        ):
            self._smooth(side, name, label, color)
            side.tick_params(axis="y", colors=color)
        self._finish(axes, right)

    def draw_thoughts(self, axes: "Axes") -> None:
        """Coherence of the thoughts with its parts (left), and their length (right)."""
        canvas.prepare(axes, "Coherence and length of the thoughts", "episode", None)
        axes.set_ylim(0, 1.02)
        for part, color in _COHERENCES.items():
            width = 2.2 if part == "composite" else 1.2
            self._curve(axes, names.RL[f"coherence_{part}"], part, color, width)
        right = canvas.right_axes(axes)
        self._smooth(right, names.RL["thought_length"], "tokens (right)", canvas.MUTED)
        right.tick_params(axis="y", colors=canvas.MUTED)
        self._finish(axes, right)

    def draw_strategies(self, axes: "Axes") -> None:
        """Baked against trained model by strategy."""
        canvas.prepare(axes, "Accuracy by strategy", None, None)
        canvas.percent_axis(axes, "x")
        before, after = self._summary.before_accuracy_by_strategy, self._summary.accuracy
        for row, strategy in enumerate(STRATEGIES):
            canvas.bar(axes, row - 0.2, before.get(strategy, math.nan), 0.32, canvas.BEFORE)
            canvas.bar(axes, row + 0.2, after.get(strategy, math.nan), 0.42, canvas.MODEL)
        canvas.name_rows(axes, [strategy.replace("_", " ") for strategy in STRATEGIES])
        canvas.key(axes, [("baked", canvas.BEFORE), ("trained", canvas.MODEL)])

    def draw_final_bits(self, axes: "Axes") -> None:
        """Baked against trained model in bits a token, with and without thoughts."""
        canvas.prepare(axes, "Bits a token on held-out text", None, None)
        axes.grid(visible=False, axis="y")
        bits = self._summary.bits
        for row, kind in enumerate(("with_thoughts", "without")):
            for model, shift, height, color in (
                ("baked", -0.2, 0.32, canvas.BEFORE),
                ("trained", 0.2, 0.42, canvas.MODEL),
            ):
                value = bits.get(f"{model}_{kind}", math.nan)
                canvas.bar(axes, row + shift, value, height, color, "{:.3f}")
        axes.set_xlim(0, 1.15 * max([*filter(math.isfinite, bits.values())], default=1.0))
        canvas.name_rows(axes, ["with thoughts", "without"])
        canvas.key(axes, [("baked", canvas.BEFORE), ("trained", canvas.MODEL)])

    def draw_ablations(self, axes: "Axes") -> None:
        """Accuracy with the own thoughts less each control's, with 95% intervals."""
        canvas.prepare(axes, "What a thought is worth", "points of accuracy", None)
        axes.grid(visible=False, axis="y")
        ablations = self._summary.ablations
        if not any(math.isfinite(ablation.mean) for ablation in ablations.values()):
            axes.set_xticks([])
            axes.set_yticks([])
            canvas.say_empty(axes, "not measured")
            return
        for row, ablation in enumerate(ablations.values()):
            _draw_difference(axes, row, ablation)
        axes.axvline(0.0, color=canvas.MUTED, linewidth=1.0)
        canvas.points_axis(axes, [v for d in ablations.values() for v in (d.mean, d.low, d.high)])
        canvas.name_rows(axes, [CONTROL_NAMES[control] for control in ablations])
        canvas.key(
            axes, [("accuracy with own thoughts less the control's, 95% interval", canvas.MODEL)]
        )

    def _headline(self) -> str:
        summary = self._summary
        lead, between = lead_text(summary)
        asks = summary.task == "questions"
        reached = f"{percent(summary.accuracy_overall)} on held-out questions, " if asks else ""
        verdict = f"; verdict {summary.verdict}" if summary.verdict else ""
        return f"Step 2: {reached}{lead} over the baked model {between}{verdict}"

    def _curve(self, axes: "Axes", name: str, label: str, color: str, width: float) -> None:
        episodes, values = self._series(name)
        if episodes:
            marker = "o" if len(episodes) <= _MOST_MARKERS else ""
            axes.plot(
                episodes,
                values,
                color=color,
                linewidth=width,
                marker=marker,
                markersize=2.0 * width,
                label=label,
                # The heavier curve is the one to see where two cross.
                zorder=2.0 + width,
            )

    def _smooth(self, axes: "Axes", name: str, label: str, color: str) -> None:
        episodes, values = self._series(name)
        if episodes:
            canvas.smooth_curve(axes, episodes, values, color, label)
            # The bottom is zero, unless an estimate from samples fell a little below it.
            top = max(values)
            axes.set_ylim(min(0.0, *values), 1.15 * top if top > 0 else 1.0)

    def _series(self, name: str) -> tuple[list[float], list[float]]:
        steps, values = canvas.series(self._records, name)
        return [step * self._episodes_a_step for step in steps], values

    def _mark_rollbacks(self, axes: "Axes") -> None:
        for episode, to in zip(*self._series(names.RL_ROLLED_BACK_TO), strict=True):
            axes.axvline(episode, color=canvas.TARGET, linestyle=":", linewidth=1.2)
            axes.annotate(
                f"rolled back to episode {to * self._episodes_a_step:,.0f}",
                (episode, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-3, -3),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=8,
                color=canvas.TARGET,
            )

    def _finish(self, *axes: "Axes", level: float = math.nan, level_name: str = "") -> None:
        """Marks rollbacks and the baked model's level, says where nothing was logged, and places
        the key."""
        first = axes[0]
        if not any(side.lines for side in axes):
            canvas.say_empty(first)
        self._mark_rollbacks(first)
        if math.isfinite(level):
            first.axhline(level, color=canvas.INK, linestyle="--", linewidth=1.2, label=level_name)
        first.set_xlim(left=0)
        canvas.place_key(first, *canvas.labelled(axes))


def _draw_difference(axes: "Axes", row: int, difference: Difference) -> None:
    low, high = difference.low, difference.high
    if not math.isfinite(difference.mean):
        canvas.write_value(axes, 0.0, row, "not measured")
        return
    axes.barh(row, difference.mean, height=0.5, color=canvas.MODEL)
    if math.isfinite(low + high):
        axes.plot([low, high], [row, row], color=canvas.INK, linewidth=1.4, marker="|")
    end = max(filter(math.isfinite, (difference.mean, high, 0.0)))
    text = f"{points(difference.mean)} {interval(low, high, points)}"
    canvas.write_value(axes, end, row, text)


def _episodes_a_step(records: Sequence[MetricRecord], summary: Step2Summary | None) -> float:
    """Of a run that has not ended, as its first step says; steps count for themselves before it."""
    if summary is not None:
        return summary.episodes / max(1, summary.steps)
    episode = names.RL["episode"]
    said = [r.metrics[episode] / r.step for r in records if r.step and episode in r.metrics]
    return said[0] if said else 1.0
