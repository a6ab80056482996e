"""How a run ended: for whoever looks into its directory, and for whoever may start it again.

Launchers turn exit statuses into others (torchrun makes 1 of all), and more is asked than they
say: whether an error is one that will come again. So the outcome is a file. A run's lies in its
directory. A process's goes where the environment variable ``DISTFORGE_OUTCOME`` says, which
``launch/keep_running.sh`` sets; ranks other than 0 write there, under a name with their rank, only
what the others cannot know: that they were refused their input, or crashed. The first rank of
another node, which may not see rank 0's file, tells the rest in one of its own; where that node has
not even the directory, nobody is there to be told.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distforge import durable
from distforge.errors import InputError, RunStopped, explain_file_error

OUTCOME_FILE = "outcome.json"
VARIABLE = "DISTFORGE_OUTCOME"

Ended = Literal["running", "met", "missed", "refused", "stopped", "crashed", "lost"]

# Exit statuses. What "runs" and is no more was killed.
STATUS: dict[Ended, int] = {
    "running": 1,
    "met": 0,
    "refused": 2,
    "missed": 3,
    "stopped": 75,
    "crashed": 1,
    "lost": 1,
}
# gloo's words for a rank that is gone; nccl's errors have a type of their own.
_PEER_IS_GONE = ("gloo", "Connection closed by peer", "Connection reset by peer")

logger = logging.getLogger(__name__)
_latest_run: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run or a process ended.

    Attributes:
        ended: "met" and "missed" of its goal; "refused" bad input, or files that fail; "stopped",
            and can be resumed; "crashed" by an error of its own; "lost" another rank; "running",
            or killed.
        why: one sentence; empty where its goal was met.
        run: the directory of the run that the process worked on last.
        progress: the newest checkpoints there: an error that comes again at the same ones comes
            always.
    """

    ended: Ended
    why: str = ""
    run: str = ""
    progress: str = ""

    @property
    def status(self) -> int:
        """The exit status."""
        return STATUS[self.ended]

    @classmethod
    def of_status(cls, status: int, why: str = "") -> Outcome:
        """Of a command that returned ``status``."""
        known: dict[int, Ended] = {
            s: ended for ended, s in STATUS.items() if s != STATUS["crashed"]
        }
        return cls(known.get(status, "crashed"), why)

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """Of a process that ``error`` ends."""
        said = str(error).splitlines() or [""]
        if isinstance(error, InputError):
            return cls("refused", str(error))
        if explained := explain_file_error(error):
            return cls("refused", explained)
        if isinstance(error, FloatingPointError):
            return cls("missed", str(error))
        if isinstance(error, RunStopped | KeyboardInterrupt):
            return cls("stopped", str(error) or "interrupted")
        why = f"{type(error).__name__}: {said[0]}"
        return cls("lost" if _is_about_a_peer(error) else "crashed", why)

    def write(self, path: Path) -> None:
        """Write it as JSON, a field a line; a failure is logged, and is no second end of the run.

        One more thing stands in it, the exit status.
        """
        try:
            durable.write_json(path, {"status": self.status, **asdict(self)})
        except OSError as error:
            logger.warning("%s cannot be written (%s)", path, error.strerror)


def works_on(run: Path) -> None:
    """What this process does from here on is for the run in that directory."""
    global _latest_run
    _latest_run = run


def tell_launcher(outcome: Outcome) -> None:
    """Write this process's outcome where the environment says, if it does."""
    file, rank = os.environ.get(VARIABLE), os.environ.get("RANK", "0")
    if not file:
        return
    if rank != "0":
        if outcome.ended in ("refused", "crashed"):
            file = f"{file}.rank{rank}"
        elif os.environ.get("LOCAL_RANK") == "0":
            file = f"{file}.node{rank}"
        else:
            return
        if not Path(file).parent.is_dir():
            return
    outcome = Outcome(outcome.ended, outcome.why, str(_latest_run or ""), _progress(_latest_run))
    outcome.write(Path(file))


def _is_about_a_peer(error: BaseException) -> bool:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _PEER_IS_GONE)


def _progress(run: Path | None) -> str:
    """Names of the newest checkpoints: of training, and of each bake of prompts."""
    if run is None:
        return ""
    latest = sorted(run.glob("**/checkpoints/latest"))
    return " ".join(f"{p.relative_to(run).parent}/{p.read_text('utf-8').strip()}" for p in latest)
