"""One place to report to: a run's metrics go to ``metrics.jsonl``, W&B and the console."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from rich.console import Console
from rich.table import Table

from distforge.errors import require_choice, require_in
from distforge.telemetry.console import RunConsole
from distforge.telemetry.guard import Guard
from distforge.telemetry.jsonl import METRICS_NAME, MetricsWriter, as_number
from distforge.telemetry.metrics import TRAIN_BRANCH, TRAIN_STEP, BakingMetrics, RLMetrics
from distforge.telemetry.wandb_logger import WandBLogger, WandBMode, check_name


@dataclass(frozen=True)
class TelemetryConfig:
    """Where a run reports to.

    Attributes:
        wandb_mode: "offline" (kept in the run's directory), "online" or "disabled"; empty is what
            WANDB_MODE says, or else offline.
        wandb_project: the W&B project; empty is what WANDB_PROJECT says, or else distforge.
            W&B's other variables, such as WANDB_ENTITY, hold as well.
        tags: labels of the run.
        console_interval_seconds: between two progress lines where the output is no terminal.

    Raises:
        InputError: an unknown mode, a name or tag outside ``[A-Za-z0-9._-]``, or a negative
            interval.
    """

    wandb_mode: WandBMode | Literal[""] = ""
    wandb_project: str = ""
    tags: tuple[str, ...] = ()
    console_interval_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.wandb_mode:
            require_choice("wandb_mode", self.wandb_mode, get_args(WandBMode))
        if self.wandb_project:
            check_name("wandb_project", self.wandb_project)
        for tag in self.tags:
            check_name("tag", tag)
        require_in("[0, inf]", console_interval_seconds=self.console_interval_seconds)


class RunLogger:
    """Fans a run's reports out; one sink's failure neither ends the run nor stops the others.

    Args:
        directory: the run's directory (made when absent).
        config: where to report to.
        run_config: the run's resolved configuration, kept by W&B.
        name: the run's name.
        enabled: False on every rank but 0: nothing is opened and every call does nothing.
        console: where progress goes; by default the standard output.

    Raises:
        InputError: ``name`` is not allow-listed.
    """

    def __init__(
        self,
        directory: Path,
        config: TelemetryConfig,
        run_config: Mapping[str, Any],
        name: str,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self.enabled = enabled
        self._abandoned = self._branch = 0
        if not enabled:
            return
        check_name("the run's name", name)
        directory = Path(directory)
        # Each record is tried: it costs microseconds, and those before it are not lost meanwhile.
        self._file_guard = Guard(METRICS_NAME, retry_seconds=0.0)
        self._file_guard.call(directory.mkdir, parents=True, exist_ok=True)
        self._file = MetricsWriter(directory / METRICS_NAME)
        self._console = RunConsole(config.console_interval_seconds, console)
        self._console_guard = Guard("console")
        shown = "" if os.environ.get("WANDB_NAME") else name
        self._wandb = WandBLogger(
            config.wandb_project, shown, run_config, config.tags, config.wandb_mode, directory
        )

    @contextmanager
    def progress(
        self, total_steps: int, description: str = "training", start_step: int = 0
    ) -> Iterator[None]:
        """Shows progress, fed by every ``log`` in the block; see `RunConsole.progress`."""
        if not self.enabled:
            yield
            return
        stage = ExitStack()
        shown = self._console.progress(total_steps, description, start_step)
        self._console_guard.call(stage.enter_context, shown)
        try:
            yield
        finally:
            self._console_guard.call(stage.close)

    def roll_back(self, abandoned: int, branch: int) -> None:
        """From now on a step is reported ``abandoned`` steps later than it is counted.

        W&B's steps cannot go back, and no metric may take the place of another's. Each record then
        also says the training's own step and the number of its branch.
        """
        self._abandoned, self._branch = abandoned, branch

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports metrics by full name (``telemetry.metrics``) at optimizer step ``step``.

        Values are numbers or tensors of one element. See `roll_back` for the step of a record.

        Raises:
            TypeError: a value is not a number.
        """
        if not self.enabled:
            return
        numbers = {name: as_number(name, value) for name, value in metrics.items()}
        if self._abandoned:
            numbers |= {TRAIN_STEP: step, TRAIN_BRANCH: self._branch}
        self._file_guard.call(self._file.write, step + self._abandoned, numbers)
        self._console_guard.call(self._console.update, step, numbers)
        self._wandb.log(numbers, step + self._abandoned)

    def log_baking_epoch(self, step: int, metrics: BakingMetrics) -> None:
        """Reports the 17 metrics of an epoch that ended at optimizer step ``step``."""
        self.log(step, metrics.as_dict())
        if self.enabled:
            self._console_guard.call(self._console.show_epoch, metrics)

    def log_rl_probe(self, step: int, metrics: RLMetrics) -> None:
        """Reports the 17 metrics of a probe of the thoughts at optimizer step ``step``."""
        self.log(step, metrics.as_dict())
        if self.enabled:
            self._console_guard.call(self._console.show_probe, metrics)

    def say(self, text: str) -> None:
        """Prints one line on the console."""
        if self.enabled:
            self._console_guard.call(self._console.say, text)

    def show(self, table: Table) -> None:
        """Prints a table on the console."""
        if self.enabled:
            self._console_guard.call(self._console.console.print, table)

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Reports a table at optimizer step ``step``, to W&B alone."""
        if self.enabled:
            self._wandb.log_table(name, columns, rows, step + self._abandoned)

    def artifact(self, path: Path, name: str, type: str) -> None:
        """Records a file or directory as a W&B artifact (see ``WandBLogger.save_artifact``)."""
        if self.enabled:
            self._wandb.save_artifact(path, name, type)

    def finish(self, exit_code: int = 0) -> None:
        """Closes every sink; a second call does nothing."""
        if self.enabled:
            self._file_guard.call(self._file.close)
            self._wandb.finish(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=0 if kind is None else 1)
