"""Processes: who this one is among how many, and the few collectives that training needs.

The one place that prepares the environment for DeepSpeed. A plain `python` run is a world of one
and opens no process group.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

import distforge
from distforge.errors import InputError, first_line
from distforge.training.host_memory import keep_freed_memory
from distforge.training.launcher import stop_with_launcher

# Longest wait for another rank; a rank that died must not leave the others hanging for ever.
DEFAULT_TIMEOUT_SECONDS = 1800.0
# Longest wait for all ranks to start, 600 s unless the environment says otherwise.
JOIN_VARIABLE = "DISTFORGE_JOIN_SECONDS"

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among ``size``: ``rank`` in all, ``local_rank`` on its machine."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here (within the group's deadline)."""
        if self.size > 1:
            dist.barrier()

    def all_reduce_sum(self, values: list[float]) -> list[float]:
        """Sums over ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def all_reduce_max(self, tensor: torch.Tensor) -> None:
        """Elementwise maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def gather_objects(self, value: Any) -> list[Any]:
        """The JSON value of every rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        return [json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())]

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        return self.gather_objects(value if self.is_main else None)[0]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([mine.numel()], device=self.device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: mine.numel()] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [
            bytes(part[: int(size)].cpu().numpy()) for part, size in zip(parts, sizes, strict=True)
        ]


def init_world(timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> World:
    """Read rank and size from the launcher's environment and join the process group.

    `deepspeed` and `torchrun` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT;
    without them this is a world of one. The backend is nccl with GPUs, gloo without. From here on
    this process ends with its launcher, and on a CPU keeps the memory it frees.

    Raises:
        InputError: the variables do not describe a world, there is no GPU for this rank, or not all
            ranks have come within ``DISTFORGE_JOIN_SECONDS`` (600).
    """
    rank, local_rank, size = (
        _read_int("RANK", 0),
        _read_int("LOCAL_RANK", 0),
        _read_int("WORLD_SIZE", 1),
    )
    if not 0 <= rank < size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {size}; expected 0 <= RANK < WORLD_SIZE")
    # transformers imports DeepSpeed where it finds it, and DeepSpeed warns unless it is told this.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"rank {rank} wants GPU {local_rank}, but this machine has "
                f"{torch.cuda.device_count()}; start fewer ranks on it"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    stop_with_launcher()
    if size > 1 and not dist.is_initialized():
        _join(rank, size, "nccl" if device.type == "cuda" else "gloo", timeout_seconds)
    _share_cores(size)
    return World(rank, local_rank, size, device)


def _join(rank: int, size: int, backend: str, timeout_seconds: float) -> None:
    """Enter the process group of the launcher's environment; `InputError` where others do not."""
    patience, timeout = _read_int(JOIN_VARIABLE, 600), datetime.timedelta(seconds=timeout_seconds)
    try:
        waits = datetime.timedelta(seconds=patience)
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=waits)))
    except (dist.DistError, ValueError) as error:
        where = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        raise InputError(
            f"not all of {size} ranks joined at {where} within {patience} s "
            f"({first_line(error)}); start the command on every node, with the address of the "
            f"first one and a port that the others reach, or raise {JOIN_VARIABLE}"
        ) from error
    store.set_timeout(timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def require_same_versions(world: World) -> None:
    """Refuse ranks of unlike software, whose losses would differ or whose messages not fit;
    collective.

    Raises:
        InputError: on every rank, where distforge, torch or DeepSpeed is not the same on all.
    """
    if world.size == 1:
        return
    first, *others = world.gather_objects(_versions())
    for rank, other in enumerate(others, start=1):
        unlike = [name for name in first if first[name] != other[name]]
        if unlike:
            said = "; ".join(f"{n} is {first[n]} on rank 0, {other[n]} on {rank}" for n in unlike)
            raise InputError(f"the nodes differ in software: {said}; install the same versions")


def _versions() -> dict[str, str]:
    # A GPU's nodes may have builds for other systems, which compute the same.
    return {
        "distforge": distforge.__version__,
        "torch": torch.__version__.partition("+")[0],
        "deepspeed": importlib.metadata.version("deepspeed"),
    }


def on_main(world: World, action: Callable[[], T]) -> T:
    """What rank 0 makes of ``action``, a JSON value, on every rank; collective.

    Raises:
        InputError: on every rank, what ``action`` raised on rank 0; also where that was an
            `OSError`: the file system's reason is the user's to remove.
        RuntimeError: on the others, where rank 0 raised anything else, and raises it.
    """

    def answer() -> tuple[T | None, str]:
        try:
            return action(), ""
        except InputError as error:
            return None, str(error)
        except OSError as error:
            return None, (
                f"{error.filename or 'a file'}: {error.strerror or error}; remove that reason and "
                "start again"
            )

    found, failure, told = ask_main(world, answer)
    if failure is not None:
        raise failure
    if told:
        raise RuntimeError(f"rank 0 failed: {told}")
    value, fault = found
    if fault:
        raise InputError(fault)
    return value


def ask_main(world: World, action: Callable[[], Any]) -> tuple[Any, Exception | None, str]:
    """What rank 0 makes of ``action``, a JSON value; the error that it raised there, on rank 0
    alone; and that error in words, or an empty string. Collective: whatever is raised, no rank is
    left waiting."""
    value = failure = None
    if world.is_main:
        try:
            value = action()
        except Exception as error:
            failure = error
    told = "" if failure is None else f"{type(failure).__name__}: {failure}"
    value, told = world.broadcast_object([value, told])
    return value, failure, told


@contextmanager
def entered_world(world: World | None = None) -> Iterator[World]:
    """``world``, which stays its owner's, or one that is joined here and left at the end."""
    if world is not None:
        yield world
        return
    world = init_world()
    try:
        require_same_versions(world)
        yield world
    finally:
        close_world(world)


def read_world_size() -> int:
    """How many ranks the launcher started, without joining them."""
    return _read_int("WORLD_SIZE", 1)


def close_world(world: World) -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def prepare_deepspeed() -> None:
    """Set what DeepSpeed reads when it is imported; call before the first import of it.

    Two of its just-in-time builds take minutes on a CPU and serve nothing here: the shared-memory
    communication op and a compiled Muon.
    """
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    import deepspeed.ops
    from deepspeed.utils import logger

    if os.environ["DS_ACCELERATOR"] == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("WARNING")
    # DeepSpeed's use of names that torch 2.13 deprecates; nobody here can change it.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
    )


def _read_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r} in the environment; expected an integer") from None


def _share_cores(size: int) -> None:
    """Divide this machine's cores among its ranks, unless the user chose a number of threads.

    Launchers set OMP_NUM_THREADS=1 where it is unset, which leaves cores idle; more threads than
    cores are several times slower still.
    """
    # torchrun's name for the ranks of one machine, then that of `deepspeed`.
    local = max(1, _read_int("LOCAL_WORLD_SIZE", _read_int("LOCAL_SIZE", size)))
    chosen = os.environ.get("OMP_NUM_THREADS")
    if chosen is None or (chosen == "1" and size > 1):
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
