"""Keeps a telemetry failure from ending a run."""

import logging
import math
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_LONGEST_PAUSE = 600.0

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Guard:
    """Stands between a run and one of its telemetry sinks.

    The first exception of a guarded call is logged as a warning with its reason. From then on calls
    return None at once, but for one after each pause, which tries the sink again; pauses double,
    up to ten minutes. When a call succeeds, that is logged once too, and the sink is as before.

    Args:
        sink: what the warning calls it, such as "W&B".
        retry_seconds: the first pause; 0 tries at every call, `math.inf` never again.
        clock: seconds that only grow; tests give their own.

    Attributes:
        alive: False between a failure and the next call that succeeds.
    """

    def __init__(
        self,
        sink: str,
        retry_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sink = sink
        self.alive = True
        self._first_pause = self._pause = retry_seconds
        self._retry_at = -math.inf
        self._clock = clock

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """``function(*args, **kwargs)``, or None when the sink is quiet or this call fails."""
        if not self.alive and self._clock() < self._retry_at:
            return None
        try:
            result = function(*args, **kwargs)
        except (Exception, SystemExit) as error:
            self._failed(error)
            return None
        if not self.alive:
            self.alive, self._pause = True, self._first_pause
            _log.warning("%s logging works again", self.sink)
        return result

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            # rich answers a closed output (`distforge ... | head`) by ending the process, after it
            # has sent all further output to nowhere.
            self._pause = math.inf
        self._retry_at = self._clock() + self._pause
        again = "" if math.isinf(self._pause) else ", and tries it again"
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not self.alive:
            return
        self.alive = False
        cause = error.__context__ if isinstance(error, SystemExit) else None
        reason = " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
        _log.warning(
            "%s logging stopped (%s); the run continues without it%s", self.sink, reason, again
        )
