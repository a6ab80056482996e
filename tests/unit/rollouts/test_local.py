"""The pool in the learner's process."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from distforge.rollouts import LocalPool, RolloutConfig, RolloutError, open_pool
from distforge.rollouts.weights import checksum
from tests.unit.rollouts.engines import TinyEngine, requests, weights

BATCH = 4
PLAN = partial(requests, batch_size=BATCH)


def test_each_step_gets_its_rollouts_with_version_and_checksum():
    with open_pool(RolloutConfig(), TinyEngine, PLAN, BATCH) as pool:
        assert isinstance(pool, LocalPool)
        for step in range(3):
            pool.publish(step, weights(step))
            rollouts = pool.take(step)
            assert [r.id for r in rollouts] == [r.id for r in PLAN(step)]
            assert {r.policy_version for r in rollouts} == {step}
            assert {r.result["version"] for r in rollouts} == {step}
            assert {r.checksum for r in rollouts} == {checksum(weights(step))}
        found = pool.statistics()
    assert (found.submitted, found.consumed, found.retried, found.dropped) == (12, 12, 0, 0)
    assert 0 < found.busy_seconds <= found.seconds_waited


def test_the_learner_keeps_its_threads_and_random_state():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with open_pool(RolloutConfig(threads_per_actor=1), TinyEngine, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        assert {r.result["threads"] for r in pool.take(0)} == {1}
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)
    assert torch.equal(torch.rand(3), expected)


def test_a_lag_is_not_needed_here_and_rollouts_are_always_new():
    with open_pool(RolloutConfig(staleness=2), TinyEngine, PLAN, BATCH) as pool:
        for step in range(4):
            pool.publish(step, weights(step))
            assert [r.id for r in pool.take(step)] == [r.id for r in PLAN(step)]


def test_resume_goes_on_where_the_run_stopped():
    def generate(pool, steps):
        for step in steps:
            pool.publish(step, weights(step))
            yield from ((r.id, r.result["product"]) for r in pool.take(step))

    with open_pool(RolloutConfig(), TinyEngine, PLAN, BATCH) as pool:
        straight = list(generate(pool, range(4)))
    with open_pool(RolloutConfig(), TinyEngine, PLAN, BATCH) as pool:
        broken = list(generate(pool, range(2)))
        state = pool.state_dict()
    with open_pool(RolloutConfig(), TinyEngine, PLAN, BATCH) as pool:
        pool.load_state_dict(state)
        broken += generate(pool, range(2, 4))
    assert [number for number, _ in broken] == [number for number, _ in straight]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(broken, straight, strict=True))


def test_going_back_generates_again_with_the_weights_of_the_new_branch():
    with open_pool(RolloutConfig(), TinyEngine, PLAN, BATCH) as pool:
        states, before = [], []
        for step in range(3):
            states.append(pool.state_dict())
            pool.publish(step, weights(step))
            before += pool.take(step)
        pool.roll_back(states[1])
        after = []
        for step in (1, 2):
            pool.publish(step, weights(10 + step))
            after += pool.take(step)
        found = pool.statistics()
    assert [r.id for r in after] == [r.id for r in before[BATCH:]]
    assert [r.result["version"] for r in after] == [11] * BATCH + [12] * BATCH
    assert {r.branch for r in before} == {0}
    assert {(r.branch, r.policy_version) for r in after} == {(1, 1), (1, 2)}
    assert (found.submitted, found.consumed, found.abandoned) == (5 * BATCH, 5 * BATCH, 0)


class Breaking(TinyEngine):
    def rollout(self, request):
        raise KeyError(f"no answer to {request.id}")


class Refusing(TinyEngine):
    def load(self, weights):
        raise RuntimeError("size mismatch for matrix")


def test_an_engine_that_fails_is_named_with_its_traceback():
    with open_pool(RolloutConfig(max_attempts=2), Breaking, PLAN, BATCH) as pool:
        pool.publish(0, weights(0))
        with pytest.raises(
            RolloutError, match=r"(?s)rollout 0 failed 2 times.*in rollout.*no answ"
        ):
            pool.take(0)


def test_an_engine_that_cannot_load_the_weights_is_named():
    with (
        open_pool(RolloutConfig(), Refusing, PLAN, BATCH) as pool,
        pytest.raises(RolloutError, match=r"weights of version 0.*size mismatch"),
    ):
        pool.publish(0, weights(0))


def test_ray_is_not_imported():
    code = """
import sys
sys.modules["ray"] = None
from distforge.rollouts import RolloutConfig, open_pool
from functools import partial
from tests.unit.rollouts.engines import TinyEngine, requests, weights
with open_pool(RolloutConfig(), TinyEngine, partial(requests, batch_size=2), 2) as pool:
    pool.publish(0, weights(0))
    print(len(pool.take(0)), "transformers" in sys.modules, "deepspeed" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "False", "False"], done.stderr
