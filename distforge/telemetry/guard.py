"""Keeps a telemetry failure from ending a run."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Guard:
    """Stands between a run and one of its telemetry sinks.

    The first exception of a guarded call is logged as a warning with its reason; from then on
    the sink is quiet: calls return None at once.

    Args:
        sink: what the warning calls it, such as "W&B".
    """

    def __init__(self, sink: str) -> None:
        self.sink = sink
        self.alive = True

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """``function(*args, **kwargs)``, or None when the sink is quiet or this call fails."""
        if not self.alive:
            return None
        try:
            return function(*args, **kwargs)
        except (Exception, SystemExit) as error:
            # rich answers a closed output (`distforge ... | head`) by ending the process.
            cause = error.__context__ if isinstance(error, SystemExit) else None
            self.alive = False
            reason = " ".join(f"{type(cause or error).__name__}: {cause or error}".split())
            _log.warning("%s logging stopped (%s); the run goes on without it", self.sink, reason)
            return None
