"""What a rollout configuration accepts."""

import math

import pytest

from distforge.errors import InputError
from distforge.rollouts import RolloutConfig


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_actors": -1}, "num_actors is -1; expected at least 0"),
        ({"staleness": -1}, "staleness is -1"),
        ({"threads_per_actor": -1}, "threads_per_actor is -1; expected at least 0"),
        ({"cpus_per_actor": math.nan}, "cpus_per_actor is nan"),
        ({"max_attempts": 0}, "max_attempts is 0"),
        ({"object_store_mib": 10}, "object_store_mib is 10; expected at least 80"),
        ({"timeout_seconds": math.inf}, "timeout_seconds is inf; expected a finite number above 0"),
        ({"request_seconds": 0.0}, "request_seconds is 0.0"),
        ({"timeout_seconds": 5.0}, "request_seconds is 600.0, more than timeout_seconds"),
        ({"address": "auto"}, "address is 'auto' with num_actors 0"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        RolloutConfig(**changes)


def test_the_default_needs_no_ray():
    assert RolloutConfig().num_actors == 0
