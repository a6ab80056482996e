"""Ranks that find each other, and every way in which they do not: a sentence, and no long wait."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence

import pytest
import torch.distributed as dist

from distforge.errors import InputError
from distforge.training.joining import join, meet, software
from tests.free_port import free_port

PATIENCE = 2


def come(ranks: Sequence[int], size: int, *versions: dict[str, str]) -> list[Exception | None]:
    """What `meet` raises for each of ``ranks``, which come at once."""
    store, ends = dist.HashStore(), [None] * len(ranks)

    def one(place: int) -> None:
        mine = versions[place] if versions else {"torch": "2.13"}
        try:
            meet(store, ranks[place], size, mine, PATIENCE)
        except Exception as error:
            ends[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_ranks_that_are_alike_meet():
    assert come([0, 1, 2, 3], 4) == [None] * 4


def test_unlike_software_is_told_to_all_ranks():
    old = {"torch": "2.11", "deepspeed": "0.19"}
    new = {"torch": "2.13", "deepspeed": "0.19"}
    ends = come([0, 1, 2], 3, new, new, old)
    host = socket.gethostname()
    said = (
        f"the nodes differ in software: torch is 2.13 on {host} (rank 0), 2.11 on {host} (rank 2); "
        "install the same versions"
    )
    assert [(type(end), str(end)) for end in ends] == [(InputError, said)] * 3


def test_what_has_to_be_alike_is_known():
    assert all(software().values())


def test_of_two_that_are_one_rank_the_second_is_refused():
    ends = come([0, 1, 1], 3)
    refused = [end for end in ends if isinstance(end, InputError)]
    assert len(refused) == 1
    assert "two processes are rank 1 of 3" in str(refused[0])
    assert {str(end) for end in ends if end not in refused} == {"missing: rank 2"}


def test_who_has_not_come_is_named():
    assert [str(end) for end in come([1, 0], 12)] == [
        "missing: rank 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    ] * 2


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    found = ("127.0.0.1", free_port())
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", found[0])
    monkeypatch.setenv("MASTER_PORT", str(found[1]))
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_first_node_whose_name_is_not_known(rank: int):
    with pytest.raises(InputError, match=r"'node-1.invalid', a name that .* does not know"):
        join(rank, 2, "gloo", ("node-1.invalid", 29500), 1, 60.0)


def test_a_port_that_is_in_use(place: tuple[str, int]):
    with socket.create_server(("", place[1])):  # noqa: SIM117
        with pytest.raises(InputError, match=rf"port {place[1]} of this machine.*is in use"):
            join(0, 2, "gloo", place, PATIENCE, 60.0)


def test_something_else_that_listens_there(place: tuple[str, int]):
    """Another service, which says nothing to what it does not know."""
    began = time.monotonic()
    with socket.create_server(place), pytest.raises(InputError, match="not all of 2 ranks joined"):
        join(1, 2, "gloo", place, PATIENCE, 60.0)
    assert time.monotonic() - began < 30


def test_ranks_that_meet_and_cannot_send(place: tuple[str, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-card")
    with pytest.raises(InputError, match=r"cannot send to each other .* in GLOO_SOCKET_IFNAME"):
        join(0, 1, "gloo", place, PATIENCE, 60.0)
    assert not dist.is_initialized()


def test_a_group_waits_as_long_as_it_is_told_once_it_is_there(place: tuple[str, int]):
    join(0, 1, "gloo", place, PATIENCE, 77.0)
    try:
        group = dist.group.WORLD
        assert group is not None
        backend = group._get_backend(dist.distributed_c10d.torch.device("cpu"))
        assert backend.options._timeout.total_seconds() == 77
    finally:
        dist.destroy_process_group()
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
