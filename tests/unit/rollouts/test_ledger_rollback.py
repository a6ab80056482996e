"""Going back in the ledger: an abandoned branch leaves nothing behind, and nothing is lost."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from distforge.errors import InputError
from distforge.rollouts.ledger import Ledger
from distforge.rollouts.messages import Rollout, RolloutError, RolloutRequest


def ledger(batch: int, staleness: int, max_attempts: int = 10**6) -> Ledger:
    def plan(step: int) -> list[RolloutRequest]:
        ids = range(step * batch, (step + 1) * batch)
        return [RolloutRequest(i, seed=i, payload=None) for i in ids]

    return Ledger(plan, batch, staleness, max_attempts)


class Learner:
    """Drives a ledger as a pool does, and keeps an account of its own of what must hold.

    The account knows nothing of requests, only what was taken on the way to the present step.
    """

    def __init__(self, batch: int, staleness: int, actors: int) -> None:
        self.books = ledger(batch, staleness)
        self.batch, self.staleness, self.actors = batch, staleness, actors
        # What actors are doing: id, branch and version of the weights.
        self.running: list[tuple[int, int, int]] = []
        self.taken: list[list[int]] = []
        self.branch = self.consumed = 0
        self.saved = [self.books.state_dict()]
        self.books.publish(0)
        self.books.begin(0)

    def moves(self) -> list[tuple[str, int]]:
        busy = range(len(self.running))
        found = [("finish", i) for i in busy] + [("fail", i) for i in busy]
        if len(self.running) < self.actors:
            found.append(("send", 0))
        if not self.books.missing():
            found.append(("step", 0))
        return found + [("back", to) for to in range(len(self.taken))]

    def do(self, move: str, which: int) -> None:
        getattr(self, move)(which)
        self.check()

    def send(self, _: int) -> None:
        if request := self.books.next_request():
            self.running.append((request.id, self.branch, self.books.version))

    def finish(self, which: int) -> None:
        number, branch, version = self.running.pop(which)
        self.books.finish(Rollout(number, version, "", None, 0.0, branch))

    def fail(self, which: int) -> None:
        number, branch, _ = self.running.pop(which)
        self.books.fail(number, branch, "chance")

    def step(self, _: int) -> None:
        step, chosen = len(self.taken), self.books.take()
        assert len(chosen) == self.batch
        assert all(r.branch == self.branch for r in chosen)
        assert all(step - self.staleness <= r.policy_version <= step for r in chosen)
        assert all(abs(r.id // self.batch - step) <= self.staleness for r in chosen)
        self.taken.append([r.id for r in chosen])
        self.consumed += self.batch
        self.begin()

    def back(self, to: int) -> None:
        self.branch += 1
        self.books.roll_back(self.saved[to])
        del self.taken[to:], self.saved[to:]
        self.begin()

    def begin(self) -> None:
        self.saved.append(json.loads(json.dumps(self.books.state_dict())))
        self.books.publish(len(self.taken))
        self.books.begin(len(self.taken))

    def check(self) -> None:
        books, ids = self.books, [i for step in self.taken for i in step]
        assert len(set(ids)) == len(ids), "consumed twice"
        assert set(range((len(self.taken) - self.staleness) * self.batch)) <= set(ids), "lost"
        assert (books.next_step, books.branch) == (len(self.taken), self.branch)
        assert books.consumed == self.consumed
        # All that the present version admits is open, but what was taken.
        open_now = (self.staleness + len(self.taken) + 1) * self.batch - len(ids)
        assert books.submitted == books.consumed + books.abandoned + open_now
        # What is open is finished, waiting, or being generated for this branch: nothing hangs.
        here = [number for number, branch, _ in self.running if branch == self.branch]
        kept = [*books._finished, *books._is_waiting, *here]
        assert sorted(kept) == sorted(books._requests), "a request hangs, or is there twice"

    def situation(self) -> Any:
        """Learners in equal situations go on alike."""
        books = self.books
        finished = [(r.id, r.policy_version) for r in books._finished.values()]
        ahead = [(i, self.branch - b, v) for i, b, v in self.running]
        return repr((self.taken, finished, sorted(books._is_waiting), ahead, books.version))


@pytest.mark.parametrize("batch, staleness, depth", [(2, 0, 18), (1, 1, 13), (1, 2, 11)])
def test_every_order_of_events_up_to_a_depth(batch: int, staleness: int, depth: int) -> None:
    """Two actors: each situation that so many events can lead to, once."""
    seen = set()
    level = [Learner(batch, staleness, actors=2)]
    went_back = dropped_late = 0
    for _ in range(depth):
        following = []
        for learner in level:
            for move in learner.moves():
                other = copy.deepcopy(learner)
                late = move[0] == "finish" and other.running[move[1]][1] < other.branch
                other.do(*move)
                went_back += move[0] == "back"
                dropped_late += late
                if (situation := other.situation()) not in seen:
                    seen.add(situation)
                    following.append(other)
        level = following
    assert len(seen) > 100
    assert min(went_back, dropped_late) > 50, "the depth reaches what this is about"


@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_any_long_walk(staleness: int, seed: int) -> None:
    rng, learner = random.Random(seed), Learner(3, staleness, actors=6)
    weights = {"send": 8, "finish": 6, "step": 6, "fail": 1, "back": 0}
    backs = 0
    while len(learner.taken) < 15:
        moves = learner.moves()
        [move] = rng.choices(moves, [weights[kind] for kind, _ in moves])
        learner.do(*move)
        if backs < 4 and rng.random() < 0.01 * len(learner.taken):
            backs += 1
            learner.do("back", rng.randrange(len(learner.taken)))
    assert backs == 4


def test_the_same_version_of_another_branch_is_no_duplicate_and_no_rollout() -> None:
    books = ledger(2, 1)
    start = books.state_dict()
    books.publish(0)
    asked = [books.next_request() for _ in range(4)]
    assert [request.id for request in asked if request] == [0, 1, 2, 3]
    books.finish(Rollout(0, 0, "", "old", 0.0, 0))
    books.roll_back(start)
    assert (books.abandoned, books.next_request()) == (4, None)
    books.publish(0)
    books.finish(Rollout(1, 0, "", "old", 0.0, 0))
    books.fail(2, 0, "an actor that was killed")
    assert (books.duplicates, books.dropped, books.retried) == (0, 0, 0)
    books.begin(0)
    assert books.missing() == 2
    for number in (0, 1):
        books.finish(Rollout(number, 0, "", "new", 0.0, 1))
    assert [r.result for r in books.take()] == ["new", "new"]


def test_attempts_are_counted_anew_in_a_new_branch() -> None:
    books = ledger(1, 0, max_attempts=2)
    start = books.state_dict()
    books.publish(0)
    books.fail(0, 0, "once")
    books.roll_back(start)
    books.publish(0)
    books.fail(0, 1, "once")
    with pytest.raises(RolloutError, match="rollout 0 failed 2 times"):
        books.fail(0, 1, "twice")


def test_the_plan_is_asked_anew() -> None:
    seeds = {"now": 1}

    def plan(step: int) -> list[RolloutRequest]:
        return [RolloutRequest(step, seeds["now"], None)]

    books = Ledger(plan, 1, 0, 1)
    start = books.state_dict()
    books.publish(0)
    request = books.next_request()
    assert request is not None
    assert request.seed == 1
    books.roll_back(start)
    seeds["now"] = 2
    books.publish(0)
    request = books.next_request()
    assert request is not None
    assert request.seed == 2


def test_a_state_of_another_run_is_refused() -> None:
    books = ledger(3, 0)
    books.publish(0)
    with pytest.raises(InputError, match="saved with 4 rollouts a step, and now has 3"):
        books.roll_back(ledger(4, 0).state_dict())
