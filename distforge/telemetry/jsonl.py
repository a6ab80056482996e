"""``metrics.jsonl``: every metric of a run, one JSON object a line.

    {"step": 40, "time": "2026-01-31T12:00:00.000Z", "seconds": 12.5, "train/loss": 1.25}

``time`` is UTC, ``seconds`` is the time in the run so far (a resumed run counts on), and the
other keys are metrics by their full names. JSON has no NaN or infinity, so those values are the
strings "NaN", "Infinity" and "-Infinity".
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from distforge import durable
from distforge.errors import InputError

METRICS_NAME = "metrics.jsonl"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_OWN_KEYS = ("step", "time", "seconds")
_MOST_UNWRITTEN = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricRecord:
    """One line of ``metrics.jsonl``.

    Attributes:
        step: the optimizer step, at least 0.
        time: UTC, ISO 8601.
        seconds: time in the run so far, at least 0.
        metrics: values by full name; NaN and infinities are floats here.
    """

    step: int
    time: str
    seconds: float
    metrics: dict[str, float]


class MetricsWriter:
    """Appends records to a metrics file; see `AppendOnly` for what a killed run leaves.

    A record is not synced: it would cost a step milliseconds, and after a power cut the run repeats
    the steps since its last checkpoint anyway. What cannot be written (a full disk) is kept and
    written before the next record, the newest 10,000 of it.

    Args:
        path: the file; its directory must exist by the first record.
        clock: seconds that only grow; tests give their own.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._lines: durable.AppendOnly | None = None
        self._unwritten: deque[str] = deque(maxlen=_MOST_UNWRITTEN)
        self._start = clock()
        with suppress(OSError):  # said with the first record
            self._open()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one record.

        Raises:
            TypeError: a value is not a number.
            OSError: it could not be written yet.
        """
        record: dict[str, Any] = {
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "seconds": round(self._clock() - self._start, 3),
        }
        record.update((name, _encode(as_number(name, value))) for name, value in metrics.items())
        self._unwritten.append(json.dumps(record, allow_nan=False))
        self._write_out()

    def close(self) -> None:
        """Writes what is left and closes the file; a second call does nothing."""
        try:
            self._write_out()
        except OSError as error:
            _log.warning("%s lacks %d records (%s)", self._path, len(self._unwritten), error)
            self._unwritten.clear()
        if self._lines is not None:
            self._lines.close()

    def _write_out(self) -> None:
        if self._unwritten and self._lines is None:
            self._open()
        while self._unwritten:
            assert self._lines is not None
            self._lines.write(self._unwritten[0])
            self._unwritten.popleft()

    def _open(self) -> None:
        self._lines = durable.AppendOnly(self._path, synced=False)
        self._start -= _seconds(self._lines.last_line())


def _seconds(line: bytes) -> float:
    """The time in the run of its last record. A damaged one ends no run: it counts from 0 again."""
    try:
        seconds = json.loads(line)["seconds"]
    except (ValueError, KeyError, TypeError):
        return 0.0
    return float(seconds) if _is_number(seconds) else 0.0


def read_metrics(path: Path) -> list[MetricRecord]:
    """All records of a metrics file, in the order they were written.

    A last line without its newline is what a kill leaves: it is left out, with a warning.

    Raises:
        InputError: the file does not exist, or a line is malformed; the message has its number.
    """
    try:
        lines = durable.read_lines(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the directory of a run") from None
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def as_number(name: str, value: Any) -> float:
    """A metric's value as a plain number; a tensor of one element becomes a float.

    Raises:
        TypeError: it is not a number.
    """
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"the metric {name} is {value!r} ({type(value).__name__}); give a number")
    return value if isinstance(value, int) else float(value)


def _encode(number: float) -> float | str:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _parse(path: Path, line_number: int, line: bytes) -> MetricRecord:
    fix = "remove or repair that line"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {line_number} is not JSON ({error}); {fix}") from None
    if not isinstance(record, dict) or any(key not in record for key in _OWN_KEYS):
        raise InputError(f"{path}, line {line_number} lacks one of {', '.join(_OWN_KEYS)}; {fix}")
    step, stamp, seconds = (record.pop(key) for key in _OWN_KEYS)
    if type(step) is not int or not isinstance(stamp, str) or not _is_number(seconds):
        raise InputError(
            f"{path}, line {line_number} has a step, time or seconds of a wrong type; {fix}"
        )
    metrics: dict[str, float] = {}
    for name, value in record.items():
        number = _NON_FINITE.get(value) if isinstance(value, str) else value
        if not _is_number(number):
            raise InputError(
                f"{path}, line {line_number}: {name} is {value!r}, not a number; {fix}"
            )
        metrics[name] = number
    return MetricRecord(step=step, time=stamp, seconds=float(seconds), metrics=metrics)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
