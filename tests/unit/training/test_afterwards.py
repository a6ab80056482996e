"""What fails after training is a warning, but for a stop."""

import logging

import pytest

from distforge.errors import InputError, RunStopped
from distforge.training.afterwards import spared


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (InputError("the page has no room"), "the page has no room"),
    ],
)
def test_a_failure_is_one_warning(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    with caplog.at_level(logging.WARNING), spared("report", "distforge report runs/x writes it"):
        raise error
    (record,) = caplog.records
    assert record.getMessage() == f"no report: {said}; distforge report runs/x writes it"


@pytest.mark.parametrize("stop", [RunStopped, KeyboardInterrupt])
def test_a_stop_goes_through(stop: type[BaseException]) -> None:
    with pytest.raises(stop), spared("report"):
        raise stop
