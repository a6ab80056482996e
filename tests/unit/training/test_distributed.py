"""One process: what the launcher's environment means, and collectives of a world of one."""

import os

import pytest
import torch
import torch.distributed as dist

from distforge.errors import InputError
from distforge.training import distributed
from distforge.training.distributed import (
    JOIN_VARIABLE,
    World,
    close_world,
    init_world,
    require_same_versions,
)
from tests.free_port import free_port

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_plain_python_is_a_world_of_one_without_a_group():
    world = init_world()
    assert (world.rank, world.local_rank, world.size, world.is_main) == (0, 0, 1, True)
    assert not dist.is_initialized()
    close_world(world)


def test_collectives_of_one():
    world = World(0, 0, 1, torch.device("cpu"))
    world.barrier()
    largest = torch.tensor([3.0])
    world.all_reduce_max(largest)
    assert largest.tolist() == [3.0]
    assert world.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
    assert world.gather_objects({"a": 1}) == [{"a": 1}]
    assert world.broadcast_object("x") == "x"


@pytest.mark.parametrize(
    "variables,named",
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_an_environment_that_is_no_world(monkeypatch, variables, named):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=named):
        init_world()


def test_cores_are_all_used_unless_the_user_says_otherwise(monkeypatch):
    torch.set_num_threads(1)
    init_world()
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    init_world()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_ranks_of_one_machine_share_its_cores(monkeypatch, name):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(distributed, "_join", lambda *args: None)
    for key, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", name: "4"}.items():
        monkeypatch.setenv(key, value)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    init_world()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_do_not_find_each_other_say_so(monkeypatch, rank):
    port = str(free_port())
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, JOIN_VARIABLE: "1"}
    for key, value in {"RANK": rank, "WORLD_SIZE": "2", **address}.items():
        monkeypatch.setenv(key, value)
    expected = rf"not all of 2 ranks joined at 127.0.0.1:{port} within 1 s .*start the command on"
    with pytest.raises(InputError, match=expected):
        init_world()


class Mixed(World):
    """Two ranks, the other one with an older torch."""

    def gather_objects(self, value):
        return [value, {**value, "torch": "2.0.1"}]


def test_ranks_of_unlike_versions_are_refused():
    mixed = Mixed(rank=0, local_rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(InputError, match=r"differ in software: torch is 2.* on rank 0, 2.0.1 on"):
        require_same_versions(mixed)
    require_same_versions(World(rank=0, local_rank=0, size=1, device=torch.device("cpu")))
