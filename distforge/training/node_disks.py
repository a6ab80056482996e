"""Nodes with a disk each: the run lies on rank 0's, and what others write or read goes over the
network.

What ranks elsewhere write into a checkpoint is moved to rank 0, and what all ranks read is brought
to the nodes that do not see it. So one directory holds the whole run, whichever other node is lost,
and the same run may go on where a file system is shared.
"""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial as partial_call
from pathlib import Path

import torch
import torch.distributed as dist

from distforge import durable
from distforge.errors import InputError
from distforge.training.distributed import World, on_main

_PIECE_BYTES = 16 << 20


def first_by_disk(root: Path, world: World) -> list[int]:
    """By rank, the first of the ranks that see the same directory ``root``, which is made where it
    is not; collective. 0 for all on a file system that all share."""
    if world.size == 1:
        return [0]
    mark = root / on_main(world, lambda: _mark(root))
    sees = mark.exists()
    _on_each(world, root, None if sees else lambda: root.mkdir(parents=True, exist_ok=True))
    if world.is_main:
        with suppress(OSError):
            mark.unlink()
    disks = world.gather_objects("" if sees else name_of(root))
    return [disks.index(disk) for disk in disks]


def name_of(directory: Path) -> str:
    """Of a directory that is there: what tells it from all others, those of other machines too."""
    found = directory.stat()
    return f"{socket.gethostname()} {found.st_dev} {found.st_ino}"


def receives(first: Sequence[int], world: World) -> bool:
    """Whether this rank is the first of a node that does not see rank 0's disk."""
    return first[world.rank] == world.rank != 0


def own_part(partial: Path, first: Sequence[int], world: World) -> Path:
    """Where this rank writes what is to lie in ``partial``: there, or in an empty directory on its
    own disk, beside where ``partial`` would be, that `move_to_main` empties; collective."""
    mine = first[world.rank]
    own = partial.with_name(f"{partial.stem}.rank{mine}{partial.suffix}") if mine else partial
    if any(first):
        _on_each(world, own, (lambda: _empty(own)) if receives(first, world) else None)
    return own


def move_to_main(own: Path, partial: Path, first: Sequence[int], world: World) -> None:
    """Move what ranks wrote into their `own_part` into ``partial`` on rank 0; collective.

    Raises:
        InputError: on every rank: it cannot be read or written.
    """
    for source in sorted(set(first) - {0}):
        _transfer(own, None, partial if world.is_main else None, source, world)
        if world.rank == source:
            shutil.rmtree(own, ignore_errors=True)


@contextmanager
def seen_by_all(directory: Path, world: World) -> Iterator[Path]:
    """Where this rank can read rank 0's ``directory`` while the block runs; collective.

    Raises:
        InputError: on every rank: it cannot be copied to a node.
    """
    first = first_by_disk(directory.parent, world)
    if not any(first):
        yield directory
        return
    mine = first[world.rank]
    copy = directory.with_name(f"{directory.name}.rank{mine}.tmp") if mine else directory
    try:
        _copy(directory, copy, first, world)
        yield copy
        world.barrier()
    finally:
        if receives(first, world):
            shutil.rmtree(copy, ignore_errors=True)


def copy_to_all(path: Path, world: World) -> None:
    """Leave a copy of rank 0's ``path``, a file or a directory if it is there, on every node that
    does not see it; collective.

    Raises:
        InputError: on every rank: it cannot be copied to a node.
    """
    first = first_by_disk(path.parent, world)
    if not any(first):
        return
    is_there, is_directory = world.broadcast_object([path.exists(), path.is_dir()])
    if is_directory:
        copy = durable.temporary(path)
        _copy(path, copy, first, world)
        publish = partial_call(durable.publish_directory, copy, path, replace=True)
        _on_each(world, path, publish if receives(first, world) else None)
    elif is_there:
        target = path.parent if receives(first, world) else None
        _transfer(path.parent, [path.name], target, 0, world)


def _copy(directory: Path, copy: Path, first: Sequence[int], world: World) -> None:
    here = copy if receives(first, world) else None
    _on_each(world, copy, None if here is None else lambda: _empty(copy))
    _transfer(directory, None, here, 0, world)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _mark(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    name = f".seen.{secrets.token_hex(8)}"
    (root / name).touch()
    return name


def _transfer(
    folder: Path, names: Sequence[str] | None, target: Path | None, source: int, world: World
) -> None:
    """Files of ``folder`` on rank ``source``, all or those named, into ``target`` where there is
    one; collective."""
    is_source = world.rank == source
    mine = _sizes(folder, names) if is_source else None
    faults: list[str] = []
    for name, size in world.gather_objects(mine)[source]:
        pieces = _pieces(folder / name if is_source else None, size, source, world, faults)
        try:
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                durable.write_pieces(target / name, pieces)
        except OSError as error:
            faults.append(_reason(error))
        for _ in pieces:  # whoever writes nothing, or no more, still takes part
            pass
    _refuse(world.gather_objects("; ".join(faults[:1])), folder)


def _sizes(folder: Path, names: Sequence[str] | None) -> list[tuple[str, int]]:
    if names is None:
        found = (path for path in folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [(name, (folder / name).stat().st_size) for name in names]


def _pieces(
    file: Path | None, size: int, source: int, world: World, faults: list[str]
) -> Iterator[bytes]:
    """A file of rank ``source``, where ``file`` says which, on all ranks; what cannot be read is
    zeros, and a fault there."""
    for start in range(0, size, _PIECE_BYTES):
        count = min(_PIECE_BYTES, size - start)
        data = b"" if file is None else _read(file, start, count, faults)
        piece = torch.frombuffer(bytearray(data.ljust(count, b"\0")), dtype=torch.uint8)
        piece = piece.to(world.device)
        dist.broadcast(piece, source)
        yield bytes(piece.cpu().numpy())


def _read(file: Path, start: int, count: int, faults: list[str]) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(start)
            data = stream.read(count)
        if len(data) < count:
            faults.append(f"{file} has become shorter")
        return data
    except OSError as error:
        faults.append(_reason(error))
        return b""


def _on_each(world: World, path: Path, action: Callable[[], object] | None) -> None:
    """Do it on the ranks that have something to do; what fails there is refused on all."""
    fault = ""
    if action is not None:
        try:
            action()
        except OSError as error:
            fault = _reason(error)
    _refuse(world.gather_objects(fault), path)


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"


def _refuse(faults: Sequence[str], path: Path) -> None:
    """`InputError` with the first of ``faults``, by rank."""
    for rank, fault in enumerate(faults):
        if fault:
            raise InputError(
                f"{path} cannot be exchanged with the node of rank {rank} ({fault}); remove that "
                "reason, or put the run's directory on a file system that all nodes share"
            )
