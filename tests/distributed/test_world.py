"""The collectives that training uses, and the harness that starts the ranks."""

import os
import signal
import time

import pytest
import torch

from distforge.errors import InputError
from distforge.training.distributed import World, on_main
from distforge.training.signals import StopRequest
from tests.distributed.harness import RankFailure, run_ranks


def collectives(world: World):
    own = {"rank": world.rank, "text": "ä" * (5 * world.rank), "list": [world.rank] * world.rank}
    largest = torch.tensor([float(world.rank), -float(world.rank)])
    world.all_reduce_max(largest)
    world.barrier()
    return (
        (world.rank, world.size, world.is_main),
        world.all_reduce_sum([1.0, 10.0**world.rank, 2.0**-40]),
        largest.tolist(),
        world.gather_objects(own),
        world.broadcast_object(["from", world.rank]),
    )


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(size):
    answers = run_ranks(size, collectives)
    assert [a[0] for a in answers] == [(r, size, r == 0) for r in range(size)]
    gathered = [{"rank": r, "text": "ä" * (5 * r), "list": [r] * r} for r in range(size)]
    for _, total, largest, objects, sent in answers:
        # float64: 2^-40 beside 111 would be lost in float32
        assert total == [size, sum(10.0**r for r in range(size)), size * 2.0**-40]
        assert largest == [size - 1, 0]
        assert objects == gathered
        assert sent == ["from", 0]


def told_on_last(world: World, number: int):
    request = StopRequest()
    request.signal = number if world.rank == world.size - 1 else 0
    return request.agreed(world)


@pytest.mark.parametrize("number", [signal.SIGTERM, 0])
def test_a_signal_to_one_rank_is_heard_by_all(number):
    assert run_ranks(2, told_on_last, number) == [bool(number)] * 2


def fail_on_last(world: World):
    if world.rank == world.size - 1:
        raise KeyError("the reason")
    world.barrier()


def die_on_last(world: World):
    if world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


def hang(world: World):
    signal.pause()


def test_a_failing_rank_shows_its_traceback():
    with pytest.raises(RankFailure, match=r"(?s)in fail_on_last.*KeyError: 'the reason'"):
        run_ranks(2, fail_on_last)


def test_a_killed_rank_ends_the_test():
    with pytest.raises(RankFailure):
        run_ranks(2, die_on_last)


def test_ranks_that_hang_are_killed_at_the_deadline():
    run_ranks(1, collectives)  # the server is up
    began = time.monotonic()
    with pytest.raises(RankFailure, match="deadline"):
        run_ranks(2, hang, deadline_seconds=2.0)
    assert time.monotonic() - began < 20


def fail_on_main(world: World, kind: str) -> str:
    errors = {
        "input": InputError("bad"),
        "file": OSError(28, "No space", "f"),
        "bug": KeyError("x"),
    }

    def action() -> None:
        raise errors[kind]

    try:
        on_main(world, action)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


@pytest.mark.parametrize(
    ("kind", "main", "other"),
    [
        ("input", "InputError: bad", "InputError: bad"),
        ("file", "InputError: f: No space; remove", "InputError: f: No space; remove"),
        ("bug", "KeyError: 'x'", "RuntimeError: rank 0 failed: KeyError: 'x'"),
    ],
)
def test_whatever_fails_on_rank_0_no_rank_is_left_waiting(kind: str, main: str, other: str) -> None:
    found = run_ranks(2, fail_on_main, kind)
    assert found[0].startswith(main)
    assert found[1].startswith(other)
