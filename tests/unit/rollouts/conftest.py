"""One Ray for a module's tests: pools keep a connection that is there before them."""

from collections.abc import Iterator

import pytest

from distforge.rollouts import RolloutConfig


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    from distforge.rollouts.cluster import connected

    with connected(RolloutConfig(num_actors=2, object_store_mib=256)):
        yield
