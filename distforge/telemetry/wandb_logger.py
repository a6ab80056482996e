"""Weights & Biases, offline unless told otherwise, and never in the way of a run."""

import logging
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self, get_args

from distforge import durable
from distforge.errors import InputError, require_choice
from distforge.telemetry.guard import Guard
from distforge.telemetry.metrics import BakingMetrics, RLMetrics

WandBMode = Literal["offline", "online", "disabled"]
ID_FILE = "wandb.id"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OLDER_MODES = {"": "offline", "run": "online", "dryrun": "offline"}
_FIRST_PAUSE_SECONDS = 10.0

_log = logging.getLogger(__name__)


class WandBLogger:
    """One W&B run, which a resumed run continues: its id is kept in ``wandb.id``.

    An offline run lands in ``<directory>/wandb/offline-run-*`` and reaches a server later with
    ``wandb sync``. A run that cannot be started, for want of the package or of a server, is logged
    once as a warning with its reason, and the logger is quiet; what fails later is tried again (see
    `Guard`).

    W&B's own variables are honoured. A value that is given here comes first, then the variable,
    then the default: WANDB_PROJECT ("distforge"), WANDB_NAME, WANDB_MODE and WANDB_DISABLED
    ("offline"), WANDB_TAGS, WANDB_RUN_ID (that of ``wandb.id``, or a new one) and WANDB_DIR
    (``directory``). What is not given here is the variable's alone: WANDB_ENTITY, WANDB_API_KEY,
    WANDB_BASE_URL, WANDB_RUN_GROUP and the others.

    Args:
        project: the W&B project; empty is WANDB_PROJECT's.
        name: the run's name; empty is WANDB_NAME's.
        config: the run's resolved configuration, kept beside the metrics.
        tags: labels of the run.
        mode: "offline", "online", "disabled" (nothing is imported or written), or empty, which is
            WANDB_MODE's.
        directory: the run's, where ``wandb.id`` and ``wandb/`` are made; by default
            ``runs/<name>``.
        deadline_seconds: how long starting the run, and again finishing it, may take.

    Raises:
        InputError: ``project``, ``name`` or a tag has a character outside ``[A-Za-z0-9._-]``,
            ``mode`` is unknown, or the deadline is not a positive number. What a variable holds
            raises nothing.
    """

    def __init__(
        self,
        project: str,
        name: str,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        mode: WandBMode | Literal[""] = "",
        directory: Path | None = None,
        deadline_seconds: float = 60.0,
    ) -> None:
        for what, value in (("project", project), ("name", name), *(("tag", tag) for tag in tags)):
            if value or what == "tag":
                check_name(f"W&B {what}", value)
        chosen = mode or _mode_of_environment()
        require_choice("W&B mode", chosen, get_args(WandBMode))
        if not (deadline_seconds > 0 and math.isfinite(deadline_seconds)):
            raise InputError(
                f"W&B deadline_seconds is {deadline_seconds}; give a positive number of seconds"
            )
        self._guard = Guard("W&B", _FIRST_PAUSE_SECONDS)
        self._run: Any = None
        if chosen != "disabled":
            # Never tried again: it may take up to the deadline, and training would wait.
            self._run = Guard("W&B", math.inf).call(
                _start,
                project=project or os.environ.get("WANDB_PROJECT", "") or "distforge",
                name=name or os.environ.get("WANDB_NAME", "") or None,
                config=dict(config or {}),
                tags=list(tags) or None,
                mode=chosen,
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
        if self._run is not None:
            self._guard.call(self._run.log, dict(metrics), step=step)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Logs a table of texts and numbers at optimizer step ``step``; a row has a value for each
        column."""
        if self._run is not None:
            self._guard.call(_log_table, self._run, name, columns, rows, step)

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
        if self._run is not None:
            self._guard.call(_log_artifact, self._run, path, name, type)

    def finish(self, exit_code: int = 0) -> None:
        """Closes the run within the deadline; a second call does nothing.

        Args:
            exit_code: 0 marks the run as finished, anything else as failed.
        """
        if self._run is not None:
            # Whatever failed before: what W&B has of the run is still to be closed.
            Guard("W&B").call(self._run.finish, exit_code=exit_code)
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
    name: str | None,
    config: dict[str, Any],
    tags: list[str] | None,
    mode: WandBMode,
    directory: Path,
    deadline_seconds: float,
) -> Any:
    # Set before the import: W&B's error reporting to its makers starts with the module.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    place = Path(os.environ.get("WANDB_DIR", "") or directory)
    place.mkdir(parents=True, exist_ok=True)
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
        # W&B reads its variables once in a process's life.
        entity=os.environ.get("WANDB_ENTITY") or None,
        name=name,
        config=config,
        tags=tags,
        mode=mode,
        dir=str(place),
        id=_run_id(directory),
        resume="allow",
        reinit="create_new",
        settings=settings,
    )


def _mode_of_environment() -> WandBMode:
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    given = os.environ.get("WANDB_MODE", "").lower()
    for mode in get_args(WandBMode):
        if mode == _OLDER_MODES.get(given, given):
            return mode
    _log.warning("WANDB_MODE is %r; expected online, offline or disabled: offline it is", given)
    return "offline"


def _run_id(directory: Path) -> str:
    """The id of the run's W&B run, kept for when it is resumed."""
    file, kept = directory / ID_FILE, ""
    with suppress(OSError, UnicodeDecodeError):
        kept = file.read_text(encoding="utf-8").strip()
    known = kept if _ID.fullmatch(kept) else ""
    chosen = os.environ.get("WANDB_RUN_ID", "") or known or secrets.token_hex(4)
    if chosen != known:
        # A disk without room for it costs no more than that a resumed run is another one.
        with suppress(OSError):
            durable.write_text(file, chosen + "\n")
    return chosen


def _log_table(
    run: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    run.log({name: table}, step=step)


def _log_artifact(run: Any, path: Path, name: str, kind: str) -> None:
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    if path.is_dir():
        artifact.add_dir(str(path), policy="immutable", skip_cache=True)
    else:
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
