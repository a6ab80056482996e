"""Real ranks in milliseconds: forked from a server that has imported torch and DeepSpeed once.

    losses = run_ranks(2, train, arguments)     # train(world, arguments) on each rank

A rank that raises fails the test with its own traceback; ranks that outlive the deadline are
killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distforge.training.distributed import World, close_world, init_world

# The first call also pays for the server's imports, 10 to 20 seconds on two busy cores.
DEADLINE_SECONDS = 120.0

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.preload"])


class RankFailure(AssertionError):
    """A rank raised, died or hung; the message holds what is known of each."""


def run_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> list[Any]:
    """``function(world, *arguments)`` on ``size`` ranks over gloo; their results by rank.

    ``function`` must be importable (defined at the top level of a test module). A size of 1 has no
    process group, like a plain ``python`` run.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, pipes = [], []
        for rank in range(size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_run_rank,
                args=(rank, size, Path(folder, "rendezvous"), sender, function, arguments),
                daemon=True,
            )
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        try:
            return _collect(pipes, time.monotonic() + deadline_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _run_rank(
    rank: int,
    size: int,
    rendezvous: Path,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    try:
        world = _enter(rank, size, rendezvous)
        # Plain pickle: multiprocessing's own would pass tensors as handles that die with the rank.
        answer = pickle.dumps((True, function(world, *arguments)))
        close_world(world)
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(answer)


def _enter(rank: int, size: int, rendezvous: Path) -> World:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    if size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=DEADLINE_SECONDS),
        )
    return init_world()


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(open_pipes, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(pipes)) if rank not in results]
            raise RankFailure(f"rank {missing} did not end before the deadline")
        for rank, pipe in enumerate(pipes):
            if pipe in ready:
                results[rank] = _receive(rank, pipe)
    return [results[rank] for rank in range(len(pipes))]


def _receive(rank: int, pipe: Connection) -> Any:
    try:
        succeeded, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise RankFailure(f"rank {rank} died without a traceback") from None
    if not succeeded:
        raise RankFailure(f"rank {rank} raised:\n{value}")
    return value
