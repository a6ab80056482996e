"""A Ray cluster that is started here, in a process that has imported Ray for another purpose."""

import os

from distforge.rollouts import RolloutConfig
from distforge.rollouts.cluster import connected, is_loopback


def test_it_listens_on_loopback_whenever_ray_was_imported():
    import ray

    environment = dict(os.environ)
    before = ray._private.ray_constants.ENABLE_RAY_CLUSTER
    with connected(RolloutConfig(num_actors=1, object_store_mib=128)):
        address = ray.get_runtime_context().gcs_address
        nodes = [node["NodeManagerAddress"] for node in ray.nodes()]
    assert is_loopback(address.rpartition(":")[0])
    assert all(is_loopback(node) for node in nodes)
    # Neither is left behind for a cluster elsewhere.
    assert before == ray._private.ray_constants.ENABLE_RAY_CLUSTER
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in set(os.environ) - set(environment)
