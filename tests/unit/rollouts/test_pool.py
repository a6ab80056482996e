"""Rollouts on real Ray actors."""

import time
from functools import partial

import pytest
import torch

from distforge.errors import InputError
from distforge.rollouts import RolloutConfig, RolloutError, open_pool
from distforge.rollouts.weights import checksum
from tests.unit.rollouts.engines import TinyEngine, requests, weights

BATCH = 5
PLAN = partial(requests, batch_size=BATCH)

pytestmark = pytest.mark.usefixtures("local_ray")


def config(**changes) -> RolloutConfig:
    base = {"num_actors": 2, "timeout_seconds": 200.0, "request_seconds": 100.0}
    return RolloutConfig(**{**base, **changes})


def generate(number_of_actors: int, threads: int):
    chosen = config(num_actors=number_of_actors, threads_per_actor=threads)
    found = []
    with open_pool(chosen, TinyEngine, PLAN, BATCH) as pool:
        for step in range(3):
            pool.publish(step, weights(step))
            found += pool.take(step)
    return found


@pytest.mark.parametrize("threads,actors", [(1, (1, 2)), (2, (1,))])
def test_results_are_bitwise_the_same_with_any_number_of_actors(threads, actors):
    alone = generate(0, threads)
    for other in (generate(number, threads) for number in actors):
        assert [(r.id, r.policy_version, r.checksum) for r in other] == [
            (r.id, r.policy_version, r.checksum) for r in alone
        ]
        for theirs, ours in zip(other, alone, strict=True):
            assert torch.equal(theirs.result["product"], ours.result["product"])
            assert theirs.result["half"].tolist() == ours.result["half"].tolist()
            assert theirs.result["half"].flags.writeable
            assert theirs.result["threads"] == threads


def test_a_lag_is_used_and_kept_within_bounds():
    staleness, steps, taken = 2, 6, []
    with open_pool(config(staleness=staleness), TinyEngine, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        for step in range(steps):
            rollouts = pool.take(step)
            assert all(0 <= step - r.policy_version <= staleness for r in rollouts)
            assert all(r.checksum == checksum(weights(r.policy_version)) for r in rollouts)
            assert all(r.result["version"] == r.policy_version for r in rollouts)
            taken += [r.id for r in rollouts]
            pool.publish(step + 1, weights(step + 1))
        found = pool.statistics()
    assert len(set(taken)) == len(taken) == found.consumed == steps * BATCH
    assert found.submitted == (staleness + steps + 1) * BATCH
    assert (found.retried, found.restarts) == (0, 0)


class Nap(TinyEngine):
    """As fast as the learner, so that some rollouts are under way at any time."""

    def rollout(self, request):
        time.sleep(0.01 * (1 + request.id % 3))
        return super().rollout(request)


def test_going_back_drops_what_is_under_way_and_repeats_versions_with_other_weights():
    staleness, steps = 2, 6
    with open_pool(config(staleness=staleness), Nap, PLAN, BATCH) as pool:
        states, taken = [], []
        pool.publish(0, weights(0))
        for step in range(4):
            states.append(pool.state_dict())
            taken.append([r.id for r in pool.take(step)])
            pool.publish(step + 1, weights(step + 1))
        pool.roll_back(states[2])
        del taken[2:]
        pool.publish(2, weights(12))
        for step in range(2, steps):
            rollouts = pool.take(step)
            # None of version 2 to 4 of the first branch, which had other weights.
            assert {r.branch for r in rollouts} == {1}
            assert all(r.result["version"] == 10 + r.policy_version for r in rollouts)
            assert all(r.checksum == checksum(weights(10 + r.policy_version)) for r in rollouts)
            assert all(max(2, step - staleness) <= r.policy_version <= step for r in rollouts)
            taken.append([r.id for r in rollouts])
            pool.publish(step + 1, weights(11 + step))
        found = pool.statistics()
    ids = [number for step in taken for number in step]
    assert len(set(ids)) == len(ids) == steps * BATCH
    assert set(range((steps - staleness) * BATCH)) <= set(ids)
    assert found.consumed == (steps + 2) * BATCH
    assert found.abandoned == (staleness + 1) * BATCH
    open_now = (staleness + 1) * BATCH
    assert found.submitted == found.consumed + found.abandoned + open_now
    assert (found.retried, found.restarts, found.duplicates) == (0, 0, 0)


def test_resume_on_actors_equals_the_straight_run():
    straight = generate(0, 1)
    with open_pool(config(num_actors=1), TinyEngine, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        broken = pool.take(0)
        state = pool.state_dict()
    with open_pool(config(num_actors=1), TinyEngine, PLAN, BATCH) as pool:
        pool.load_state_dict(state)
        for step in (1, 2):
            pool.publish(step, weights(step))
            broken += pool.take(step)
    assert [r.id for r in broken] == [r.id for r in straight]
    pairs = zip(broken, straight, strict=True)
    assert all(torch.equal(a.result["product"], b.result["product"]) for a, b in pairs)


class Refusing(TinyEngine):
    def load(self, weights):
        raise RuntimeError("size mismatch for matrix")


class Unmakeable(TinyEngine):
    def __init__(self):
        raise OSError("no model here")


class Refused(TinyEngine):
    def __init__(self):
        raise InputError("such a model is unknown here; take another engine")


def test_an_engine_that_no_actor_can_make_is_refused_once_and_in_its_own_words():
    chosen = config(num_actors=2, max_restarts=3)
    with open_pool(chosen, Refused, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        with pytest.raises(InputError, match=r"^such a model is unknown here; take another engine"):
            pool.take(0)
        assert pool.statistics().restarts == 0


class Breaking(TinyEngine):
    def rollout(self, request):
        raise KeyError(f"no answer to {request.id}")


class Unpicklable(TinyEngine):
    def rollout(self, request):
        return lambda: None


@pytest.mark.parametrize(
    "engine,message",
    [
        (Refusing, r"(?s)could not load the weights of version 0.*in load.*size mismatch"),
        (Unmakeable, r"(?s)all 1 rollout actors failed 2 times in a row.*__init__.*no model here"),
        (Breaking, r"(?s)rollout \d failed 2 times.*in rollout.*no answer"),
        (Unpicklable, r"(?s)rollout \d failed 2 times.*pickle"),
    ],
)
def test_what_cannot_work_ends_with_its_traceback(engine, message):
    with open_pool(
        config(num_actors=1, max_attempts=2, max_restarts=1), engine, PLAN, BATCH
    ) as pool:
        pool.publish(0, weights(0))
        with pytest.raises(RolloutError, match=message):
            pool.take(0)
        with pytest.raises(RolloutError, match=message):
            pool.publish(1, weights(1))


def test_more_actors_than_the_cluster_holds_are_refused():
    with (
        pytest.raises(InputError, match="3 actors want 3 CPU, and the Ray cluster has 2; lower"),
        open_pool(config(num_actors=3), TinyEngine, PLAN, BATCH),
    ):
        pass


def test_another_cluster_than_the_connected_one_is_refused():
    elsewhere = config(address="127.0.0.1:1")
    with (
        pytest.raises(InputError, match="is connected to the Ray cluster at 127"),
        open_pool(elsewhere, TinyEngine, PLAN, BATCH),
    ):
        pass
