"""What a run shows: a progress bar on a terminal, one plain line an interval elsewhere."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from distforge.activity import doing, format_seconds, heard, on_show, progress_line
from distforge.telemetry import metrics as names

# The first of these that a run has logged is "the" accuracy of its progress line.
_ACCURACIES = (
    names.RL_ACCURACY["own"],
    names.RL_ACCURACY["sampled"],
    names.BAKING_ACCURACY_OVERALL,
    names.TRAIN_TOKEN_ACCURACY,
)
# What is told beside a reward. Where few groups are told apart there is little to learn from.
_OF_A_REWARD = (
    (names.RL_TOLD_APART, "groups with unlike rewards {:.0%}"),
    (names.RL_ENTROPY, "entropy {:.3f}"),
    (names.RL["kl_divergence"], "KL {:.4f}"),
    (names.RL["thought_length"], "length {:.1f}"),
)
_REWARDS = (names.RL["avg_reward"], names.RL["reward"])
_SHOWN = (
    *_REWARDS,
    names.RL_ENTROPY,
    names.RL["kl_divergence"],
    names.RL["thought_length"],
    names.RL_TOLD_APART,
    names.TRAIN_LOSS,
    names.BAKING_LOSS,
    names.TRAIN_TOKENS_PER_SECOND,
    *_ACCURACIES,
)


class RunConsole:
    """Shows step, loss or reward, tokens a second, accuracy and time left.

    Args:
        interval_seconds: between two plain lines where the output is not a terminal. The first
            and the last step of a stage are always shown.
        console: where to; by default the standard output.
        clock: seconds that only grow; tests give their own.
    """

    def __init__(
        self,
        interval_seconds: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console if console is not None else Console()
        self._interval = interval_seconds
        self._clock = clock
        self._latest: dict[str, float] = {}
        self._stage: _LineStage | _BarStage | None = None
        self._count: Callable[[int], None] | None = None

    @contextmanager
    def progress(
        self, total_steps: int, description: str = "training", start_step: int = 0
    ) -> Iterator[None]:
        """Shows progress while the block runs; stages follow one another, they do not nest.

        Args:
            total_steps: the step at which the stage is complete.
            description: what the stage does, in a word or two.
            start_step: the step already reached (a resumed run).
        """
        assert self._stage is None, "stages of progress do not nest"
        self._latest.clear()
        stage: _LineStage | _BarStage
        if self.console.is_terminal:
            stage = _BarStage(self.console, total_steps, description, start_step)
        else:
            pace = _Pace(total_steps, start_step, self._clock)
            stage = _LineStage(self.console, description, pace, self._interval)
        self._stage = stage
        try:
            with (
                doing(description) as count,
                on_show() if self.console.is_terminal else nullcontext(),
            ):
                self._count = lambda step: count(step - start_step, total_steps - start_step)
                yield
        finally:
            self._stage = self._count = None
            stage.close()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step; outside ``progress`` nothing is shown."""
        self._latest.update((name, metrics[name]) for name in _SHOWN if name in metrics)
        if self._count is not None:
            self._count(step)
        if self._stage is not None:
            self._stage.advance(step, describe_metrics(self._latest))

    def show_epoch(self, metrics: names.BakingMetrics) -> None:
        """Prints one line for an epoch: overall accuracy, the weakest strategy, progress."""
        known = {name: value for name, value in metrics.accuracy.items() if math.isfinite(value)}
        weakest = min(known, key=lambda name: known[name], default=None)
        thinking = metrics.token_usage["thinking"]
        parts = [
            f"epoch {metrics.epoch:g}",
            f"loss {metrics.loss:.4f}",
            f"accuracy {metrics.accuracy_overall:.1%}",
            f"weakest {weakest} {known[weakest]:.1%}" if weakest is not None else "",
            f"thinking {thinking:.1%}" if math.isfinite(thinking) else "",
            f"convergence {metrics.convergence_progress:.1%}",
        ]
        self.say("  ".join(part for part in parts if part))

    def show_probe(self, metrics: names.RLMetrics) -> None:
        """Prints one line for a probe of the thoughts; what was not measured is left out."""
        parts = [
            (metrics.avg_reward, "reward {:.3f}"),
            (metrics.thought_length, "length {:.1f}"),
            (metrics.kl_divergence, "KL {:.4f}"),
            (100 * metrics.anti_theater_ablation, "ablation {:+.1f} points"),
            (metrics.coherence_composite, "coherence {:.2f}"),
        ]
        known = [form.format(value) for value, form in parts if math.isfinite(value)]
        self.say("  ".join((f"episode {metrics.episode:,.0f}", *known)))

    def say(self, text: str) -> None:
        """Prints one line as it is, above the progress bar where there is one."""
        heard()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_metrics(latest: Mapping[str, float]) -> str:
    """Reward and entropy, or else the loss; then speed and accuracy; each only when known."""
    parts = []
    losses = (names.TRAIN_LOSS, names.BAKING_LOSS)
    # A loss of reinforcement learning does not say how well it goes; the reward does.
    if (reward := _first(latest, _REWARDS)) is not None:
        parts.append(f"reward {latest[reward]:.3f}")
        parts += [form.format(latest[name]) for name, form in _OF_A_REWARD if name in latest]
    elif (loss := _first(latest, losses)) is not None:
        parts.append(f"loss {latest[loss]:.4f}")
    if names.TRAIN_TOKENS_PER_SECOND in latest:
        parts.append(f"tokens/s {_thousands(latest[names.TRAIN_TOKENS_PER_SECOND])}")
    # A probe that did not measure an accuracy logs NaN for it.
    measured = [name for name in _ACCURACIES if not math.isnan(latest.get(name, math.nan))]
    if measured:
        label = "token accuracy" if "token_accuracy" in measured[0] else "accuracy"
        parts.append(f"{label} {latest[measured[0]]:.1%}")
    return "  ".join(parts)


def _first(latest: Mapping[str, float], among: Sequence[str]) -> str | None:
    return next((name for name in among if name in latest), None)


class _Pace:
    """Time gone and time left of a stage."""

    def __init__(self, total_steps: int, start_step: int, clock: Callable[[], float]) -> None:
        self.total_steps, self.clock = total_steps, clock
        self._start_step, self._began = start_step, clock()

    def describe(self, step: int) -> str:
        elapsed, done = self.clock() - self._began, step - self._start_step
        left = elapsed / done * (self.total_steps - step) if done > 0 else math.nan
        return f"elapsed {format_seconds(elapsed)}  ETA {format_seconds(left)}"


class _LineStage:
    def __init__(
        self, console: Console, description: str, pace: _Pace, interval_seconds: float
    ) -> None:
        self._console, self._description, self._pace = console, description, pace
        self._interval = interval_seconds
        self._shown_at = -math.inf
        self._pending: str | None = None

    def advance(self, step: int, text: str) -> None:
        position = f"step {step}/{self._pace.total_steps}"
        parts = (self._description, position, text, self._pace.describe(step))
        self._pending = "  ".join(part for part in parts if part)
        due = self._pace.clock() - self._shown_at >= self._interval
        if due or step >= self._pace.total_steps:
            self._show()

    def _show(self) -> None:
        if self._pending is not None:
            heard()
            self._console.print(self._pending, markup=False, highlight=False, soft_wrap=True)
            self._pending, self._shown_at = None, self._pace.clock()

    def close(self) -> None:
        self._show()


class _BarStage:
    def __init__(
        self,
        console: Console,
        total_steps: int,
        description: str,
        start_step: int,
    ) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA", style="dim"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID = self._bar.add_task(
            description, total=total_steps, completed=start_step, text=""
        )
        self._bar.start()

    def advance(self, step: int, text: str) -> None:
        self._bar.update(self._task, completed=step, text=text)

    def close(self) -> None:
        self._bar.stop()


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def counting(
    say: Callable[[str], None],
    what: str,
    interval_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[float, int], None]:
    """Something to be called with (done, total) as work goes on, which says how far it is.

    A line at most every ``interval_seconds``, the first one that long after now; with the time left
    once something is done.

    Args:
        say: takes a line.
        what: that is counted, such as "answering questions".
    """
    began = said = clock()

    def count(done: float, total: int) -> None:
        nonlocal said
        now = clock()
        if now - said < interval_seconds:
            return
        said = now
        heard()
        say(progress_line(what, done, total, now - began))

    return count
