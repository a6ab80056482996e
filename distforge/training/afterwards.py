"""What follows training may fail without taking the trained model with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from distforge.errors import InputError

_log = logging.getLogger(__name__)


@contextmanager
def spared(what: str, remedy: str = "the model is saved") -> Iterator[None]:
    """Go on without ``what``, with a warning, where the block fails.

    For reports, registering and the like, once the model is on the disk: the run ends as it would
    have without them. A stop (`RunStopped`, KeyboardInterrupt) goes through.

    Args:
        what: what there is not, in a word or two.
        remedy: how to have it after all.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        _log.warning("no %s: %s%s; %s", what, kind, error, remedy)
