"""Weights & Biases, offline unless told otherwise, and never in the way of a run."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from distforge.errors import InputError, require_choice
from distforge.telemetry.guard import Guard
from distforge.telemetry.metrics import BakingMetrics, RLMetrics

WandBMode = Literal["offline", "online", "disabled"]
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")


class WandBLogger:
    """One W&B run.

    An offline run lands in ``<directory>/wandb/offline-run-*`` and reaches a server later with
    ``wandb sync``. Whatever fails after construction, from a missing package to a dead server,
    is logged once as a warning with its reason, after which the logger is quiet.

    Args:
        project: the W&B project.
        name: the run's name.
        config: the run's resolved configuration, kept beside the metrics.
        tags: labels of the run.
        mode: "offline", "online" or "disabled" (nothing is imported or written).
        directory: where ``wandb/`` is made; by default ``runs/<name>``.
        deadline_seconds: how long starting the run, and again finishing it, may take.

    Raises:
        InputError: ``project``, ``name`` or a tag has a character outside ``[A-Za-z0-9._-]``,
            ``mode`` is unknown, or the deadline is not a positive number.
    """

    def __init__(
        self,
        project: str,
        name: str,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        mode: WandBMode = "offline",
        directory: Path | None = None,
        deadline_seconds: float = 60.0,
    ) -> None:
        for what, value in (("project", project), ("name", name), *(("tag", tag) for tag in tags)):
            check_name(f"W&B {what}", value)
        require_choice("W&B mode", mode, get_args(WandBMode))
        if not (deadline_seconds > 0 and math.isfinite(deadline_seconds)):
            raise InputError(
                f"W&B deadline_seconds is {deadline_seconds}; give a positive number of seconds"
            )
        self._guard = Guard("W&B")
        self._run: Any = None
        if mode != "disabled":
            self._run = self._guard.call(
                _start,
                project=project,
                name=name,
                config=dict(config or {}),
                tags=list(tags),
                mode=mode,
                directory=Path(directory) if directory is not None else Path("runs", name),
                deadline_seconds=deadline_seconds,
            )

    @property
    def active(self) -> bool:
        """Whether calls still reach W&B."""
        return self._run is not None and self._guard.alive

    def log_baking_epoch(self, metrics: BakingMetrics, step: int) -> None:
        """Logs the 17 baking metrics at optimizer step ``step`` (steps never go back)."""
        self.log(metrics.as_dict(), step)

    def log_rl_probe(self, metrics: RLMetrics, step: int) -> None:
        """Logs the 17 metrics of reinforcement learning at optimizer step ``step``."""
        self.log(metrics.as_dict(), step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics by full name at optimizer step ``step`` (steps never go back)."""
        if self.active:
            self._guard.call(self._run.log, dict(metrics), step=step)

    def save_artifact(self, path: Path, name: str, type: str) -> None:
        """Records a file or directory as a W&B artifact.

        The content is referred to where it lies (no second copy), so it must stay until an
        offline run has been synced.

        Raises:
            InputError: ``name`` or ``type`` is not allow-listed, or ``path`` does not exist.
        """
        check_name("W&B artifact name", name)
        check_name("W&B artifact type", type)
        path = Path(path)
        if not path.exists():
            raise InputError(f"the artifact {path} does not exist; give the path of a saved file")
        if self.active:
            self._guard.call(_log_artifact, self._run, path, name, type)

    def finish(self, exit_code: int = 0) -> None:
        """Closes the run within the deadline; a second call does nothing.

        Args:
            exit_code: 0 marks the run as finished, anything else as failed.
        """
        if self.active:
            self._guard.call(self._run.finish, exit_code=exit_code)
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=0 if kind is None else 1)


def check_name(what: str, value: str) -> None:
    """Raises InputError unless ``value`` is a name that is safe in a path, a URL and a filter.

    Allowed are 1 to 128 of ``[A-Za-z0-9._-]``, the first not a dot.
    """
    if not isinstance(value, str) or not _NAME.match(value):
        raise InputError(
            f"{what} is {value!r}; use 1 to 128 letters, digits, dots, underscores and hyphens, "
            "not starting with a dot"
        )


def _start(
    *,
    project: str,
    name: str,
    config: dict[str, Any],
    tags: list[str],
    mode: WandBMode,
    directory: Path,
    deadline_seconds: float,
) -> Any:
    # Set before the import: W&B's error reporting to its makers starts with the module.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        init_timeout=deadline_seconds,
        login_timeout=max(1, round(deadline_seconds)),
        finish_timeout=deadline_seconds,
        finish_timeout_raises=True,
        # Captured output would double the console's; W&B's own lines would tear the progress bar.
        console="off",
        silent=True,
        save_code=False,
        disable_job_creation=True,
    )
    return wandb.init(
        project=project,
        name=name,
        config=config,
        tags=tags,
        mode=mode,
        dir=str(directory),
        reinit="create_new",
        settings=settings,
    )


def _log_artifact(run: Any, path: Path, name: str, kind: str) -> None:
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    if path.is_dir():
        artifact.add_dir(str(path), policy="immutable", skip_cache=True)
    else:
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
