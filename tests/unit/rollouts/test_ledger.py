"""Staleness, order, retries and resume, against a brute-force reading of the rules."""

import json
import random

import pytest

from distforge.errors import InputError
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.messages import Rollout, RolloutError, RolloutRequest

BATCH = 3


def plan(step: int) -> list[RolloutRequest]:
    ids = range(step * BATCH, (step + 1) * BATCH)
    return [RolloutRequest(i, seed=i, payload=None) for i in ids]


def ledger(staleness: int = 0, max_attempts: int = 3) -> Ledger:
    return Ledger(plan, BATCH, staleness, max_attempts)


def rollout(number: int, version: int) -> Rollout:
    return Rollout(number, version, "", None, 0.0)


def waiting(books: Ledger) -> list[int]:
    found = []
    while request := books.next_request():
        found.append(request.id)
    return found


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_submitted_requests_follow_the_published_version(staleness):
    books = ledger(staleness)
    for version in range(4):
        books.publish(version)
        assert books.submitted == (staleness + version + 1) * BATCH
    assert waiting(books) == list(range((staleness + 4) * BATCH))


def test_without_staleness_a_step_takes_its_own_requests():
    books = ledger()
    for step in range(3):
        books.publish(step)
        numbers = waiting(books)
        assert numbers == [r.id for r in plan(step)]
        books.begin(step)
        for number in reversed(numbers):
            assert books.missing() > 0
            books.finish(rollout(number, step))
        assert [r.id for r in books.take()] == numbers


def test_the_first_to_finish_are_taken_sorted_by_id():
    books = ledger(staleness=2)
    books.publish(0)
    waiting(books)
    books.begin(0)
    for number in (8, 1, 4):
        books.finish(rollout(number, 0))
    assert [r.id for r in books.take()] == [1, 4, 8]


def test_a_slow_request_is_waited_for_after_as_many_steps_as_the_staleness():
    books = ledger(staleness=1)
    books.publish(0)
    waiting(books)
    for number in range(1, 6):
        books.finish(rollout(number, 0))
    books.begin(0)
    assert [r.id for r in books.take()] == [1, 2, 3]
    books.publish(1)
    waiting(books)
    books.begin(1)
    assert books.missing() == 1  # two are there, but id 0 must not be left behind
    for number in range(6, 9):
        books.finish(rollout(number, 1))
    assert books.missing() == 1
    books.finish(rollout(0, 0))
    assert [r.id for r in books.take()] == [0, 4, 5]


def test_what_became_stale_is_generated_again():
    books = ledger(staleness=1)
    books.publish(0)
    waiting(books)
    for number in range(6):
        books.finish(rollout(number, 0))
    for step in range(2):
        books.begin(step)
        books.take()
        books.publish(step + 1)
    waiting(books)
    for number in (6, 7, 8):
        books.finish(rollout(number, 0))  # began long ago: step 2 accepts version 1 at the oldest
    assert books.dropped == 3
    assert waiting(books) == [6, 7, 8]


def test_finished_rollouts_that_grow_stale_are_dropped_when_the_step_begins():
    books = ledger(staleness=1)
    books.publish(0)
    waiting(books)
    for number in range(6):
        books.finish(rollout(number, 0))
    books.begin(0)
    books.take()
    books.publish(1)
    assert waiting(books) == [6, 7, 8]
    books.begin(1)
    for number in (6, 7, 8):
        books.finish(rollout(number, 0))
    books.take()
    books.publish(2)
    assert waiting(books) == [9, 10, 11]
    books.begin(2)
    assert books.dropped == 3
    assert books.missing() == 3
    assert waiting(books) == [6, 7, 8]


def test_a_rollout_that_comes_twice_counts_once():
    books = ledger()
    books.publish(0)
    waiting(books)
    for number in (0, 0, 1, 2, 2):
        books.finish(rollout(number, 0))
    books.begin(0)
    assert [r.id for r in books.take()] == [0, 1, 2]
    books.finish(rollout(1, 0))
    assert books.duplicates == 3


def test_a_request_that_keeps_failing_ends_with_its_reason():
    books = ledger(max_attempts=2)
    books.publish(0)
    assert books.next_request() == plan(0)[0]
    books.fail(0, 0, "first")
    assert books.next_request() == plan(0)[0]
    with pytest.raises(RolloutError, match=r"(?s)rollout 0 failed 2 times .*the second"):
        books.fail(0, 0, "the second")


def test_a_late_failure_of_a_finished_request_is_ignored():
    books = ledger(max_attempts=1)
    books.publish(0)
    waiting(books)
    books.finish(rollout(0, 0))
    books.fail(0, 0, "too late")
    assert (books.retried, waiting(books)) == (0, [])


def test_versions_and_steps_go_in_order():
    books = ledger(staleness=1)
    with pytest.raises(ValueError, match="version -1 is the newest"):
        ledger().begin(0)
    books.publish(0)
    with pytest.raises(ValueError, match="versions must rise"):
        books.publish(0)
    with pytest.raises(ValueError, match="step 1 was asked for; step 0 is due"):
        books.begin(1)


def test_a_plan_that_breaks_its_contract_is_named():
    books = Ledger(lambda step: plan(step)[1:], BATCH, 0, 1)
    with pytest.raises(ValueError, match=r"step 0 has ids \[1, 2\]; expected \[0, 1, 2\]"):
        books.publish(0)
    with pytest.raises(InputError, match="batch_size is 0"):
        Ledger(plan, 0, 0, 1)


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_events_loses_and_repeats_nothing(staleness, seed):
    """Random finishing, failing and resuming; every id once, none too stale or too late."""
    rng = random.Random(seed)
    books, running, taken, steps = ledger(staleness, max_attempts=10**6), {}, [], 25
    books.publish(0)
    while books.next_step < steps:
        step = books.next_step
        books.begin(step)
        while books.missing():
            while len(running) < 6 and (request := books.next_request()):
                running[request.id] = books.version
            number = rng.choice(list(running))
            if rng.random() < 0.2:
                del running[number]
                books.fail(number, 0, "chance")
            else:
                books.finish(rollout(number, running.pop(number)))
        chosen = books.take()
        assert len(chosen) == BATCH
        assert [r.id for r in chosen] == sorted(r.id for r in chosen)
        assert all(step - staleness <= r.policy_version <= step for r in chosen)
        assert all(abs(r.id // BATCH - step) <= staleness for r in chosen)
        taken += [r.id for r in chosen]
        if rng.random() < 0.2:
            state = json.loads(json.dumps(books.state_dict()))
            books, running = ledger(staleness, max_attempts=10**6), {}
            books.load_state_dict(state)
        books.publish(books.next_step)
    assert len(set(taken)) == len(taken) == steps * BATCH
    assert set(range((steps - staleness) * BATCH)) <= set(taken)


def test_another_staleness_may_resume():
    books = ledger(staleness=2)
    books.publish(0)
    waiting(books)
    books.begin(0)
    for number in (6, 7, 8):
        books.finish(rollout(number, 0))
    books.take()
    after = ledger()
    after.load_state_dict(books.state_dict())
    taken = []
    for step in range(1, 4):
        after.publish(step)
        after.begin(step)
        for number in waiting(after):
            after.finish(rollout(number, step))
        taken += [r.id for r in after.take()]
    assert taken == [0, 1, 2, 3, 4, 5, 9, 10, 11]


def test_another_batch_size_does_not_resume():
    other = Ledger(plan, BATCH + 1, 0, 1)
    with pytest.raises(InputError, match="saved with 3 rollouts a step, and now has 4"):
        other.load_state_dict(ledger().state_dict())
    books = ledger()
    books.publish(0)
    with pytest.raises(ValueError, match="before the first publish"):
        books.load_state_dict(books.state_dict())
