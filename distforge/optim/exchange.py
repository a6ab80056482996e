"""Moving the elements of a bucket between the ranks that hold them and the ranks that own them.

Every transfer is asynchronous: it is begun, other work is done, and then it is waited for. Ranks
begin the same transfers in the same order, since they follow the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.optim.layout import Fragment
from distforge.optim.peers import Peers
from distforge.optim.plan import Batch, Bucket, batches

Parts = list[tuple[Fragment, Tensor]]
Route = list[tuple[int, Fragment]]

# Elements; a message of fewer is all latency.
NARROWEST = 1024


@dataclass(frozen=True)
class Routes:
    """What one rank does in one bucket. Numbers are those of the bucket's matrices.

    held: the fragments on this rank.
    owned: the matrices that this rank orthogonalises. batches: the same, by shape.
    outgoing: by peer, the fragments here of what the peer owns and puts together from them.
    incoming: by peer, the fragments there of which this rank puts together what it owns.
    answers: by peer, all fragments there of what this rank owns; more than came from there where
        several ranks hold the same elements. awaited: by peer, all fragments here of what it owns.
    replicated: every rank holds everything.
    silent: no rank sends anything.
    window: elements of which what all ranks have may be gathered at a time.
    """

    bucket: Bucket
    rank: int
    size: int
    window: int = 2**62

    @cached_property
    def held(self) -> Route:
        return [
            (i, fragment)
            for i, matrix in enumerate(self.bucket.matrices)
            for fragment in matrix.held[self.rank]
        ]

    @cached_property
    def owned(self) -> list[int]:
        return [i for i, owner in enumerate(self.bucket.owners) if owner == self.rank]

    @cached_property
    def batches(self) -> list[Batch]:
        return batches({i: self.bucket.matrices[i] for i in self.owned})

    @cached_property
    def outgoing(self) -> list[Route]:
        return [self._route(self.rank, peer, lent=True) for peer in range(self.size)]

    @cached_property
    def incoming(self) -> list[Route]:
        return [self._route(peer, self.rank, lent=True) for peer in range(self.size)]

    @cached_property
    def answers(self) -> list[Route]:
        return [self._route(peer, self.rank) for peer in range(self.size)]

    @cached_property
    def awaited(self) -> list[Route]:
        return [self._route(self.rank, peer) for peer in range(self.size)]

    @cached_property
    def used(self) -> set[int]:
        """The matrices whose update, filtered here, is used here or by a peer."""
        return {i for route in self.outgoing for i, _ in route} | set(self.owned)

    @cached_property
    def replicated(self) -> bool:
        return self.bucket.matrices[0].replicated

    @cached_property
    def silent(self) -> bool:
        return all(
            rank == owner or not fragments
            for matrix, owner in zip(self.bucket.matrices, self.bucket.owners, strict=True)
            for rank, fragments in enumerate(matrix.held)
        )

    def _route(self, holder: int, owner: int, *, lent: bool = False) -> Route:
        """Fragments on ``holder`` of what ``owner`` owns, or those that it lends; none where they
        are one rank."""
        if holder == owner:
            return []
        return [
            (i, fragment)
            for i, (matrix, chosen) in enumerate(
                zip(self.bucket.matrices, self.bucket.owners, strict=True)
            )
            if chosen == owner and (not lent or matrix.lends(holder, owner))
            for fragment in matrix.held[holder]
        ]


class Transfer:
    """An all-to-all under way. ``received`` waits for it and gives the parts, by matrix."""

    def __init__(
        self,
        send: Sequence[Sequence[Tensor]],
        receive: Sequence[Route],
        peers: Peers,
        dtype: torch.dtype,
    ) -> None:
        device = peers.device
        self._routes = receive
        outgoing = [sum(part.numel() for part in parts) for parts in send]
        incoming = [sum(fragment.numel for _, fragment in route) for route in receive]
        # Kept until the wait is over: the transfer reads it.
        self._sent = _joined([part for parts in send for part in parts], dtype, device)
        self._buffer = torch.empty(sum(incoming), dtype=dtype, device=device)
        self._work = dist.all_to_all_single(
            self._buffer, self._sent, incoming, outgoing, group=peers.group, async_op=True
        )

    def received(self) -> dict[int, Parts]:
        """The fragments that have arrived, by number of their matrix."""
        self._work.wait()
        del self._sent
        flat = [pair for route in self._routes for pair in route]
        parts: dict[int, Parts] = {}
        pieces = self._buffer.split([fragment.numel for _, fragment in flat])
        for (index, fragment), piece in zip(flat, pieces, strict=True):
            parts.setdefault(index, []).append((fragment, piece))
        return parts


class Gather:
    """All-gathers under way: each owner's matrices go to everyone, a window of them at a time, so
    that no rank holds what all have made."""

    def __init__(
        self, routes: Routes, results: Mapping[int, Tensor], peers: Peers, dtype: torch.dtype
    ) -> None:
        self._routes, self._peers = routes, peers
        bucket = routes.bucket
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(routes.size)]
        ends = [0] * routes.size
        for index, (matrix, owner) in enumerate(zip(bucket.matrices, bucket.owners, strict=True)):
            self._places[owner].append((index, ends[owner]))
            ends[owner] += matrix.numel
        self._longest = max(ends)
        self._mine = _joined([results[i] for i in routes.owned], dtype, peers.device)
        # Two are under way at a time.
        self._width = min(self._longest, max(NARROWEST, routes.window // (2 * routes.size)))
        self._begun = self._begin(0)

    def _begin(self, at: int) -> tuple[Tensor, Tensor, dist.Work]:
        sent = self._mine.new_zeros(self._width)
        mine = self._mine[at : at + self._width]
        sent[: len(mine)] = mine
        buffer = self._mine.new_empty(self._routes.size, self._width)
        work = dist.all_gather_into_tensor(
            buffer.view(-1), sent, group=self._peers.group, async_op=True
        )
        return buffer, sent, work

    def received(self) -> Iterator[dict[int, Parts]]:
        """Parts of every matrix of the bucket, by number, until all of all have been given."""
        for at in range(0, self._longest, self._width):
            buffer, _, work = self._begun
            work.wait()
            if at + self._width < self._longest:
                self._begun = self._begin(at + self._width)
            else:
                del self._begun, self._mine
            yield self._parts(buffer, at)

    def _parts(self, rows: Tensor, at: int) -> dict[int, Parts]:
        parts: dict[int, Parts] = {}
        for row, places in zip(rows, self._places, strict=True):
            for index, begin in places:
                matrix = self._routes.bucket.matrices[index]
                first, last = max(begin, at), min(begin + matrix.numel, at + self._width)
                for fragment in matrix.held[self._routes.rank]:
                    found = fragment.within(first - begin, max(0, last - first))
                    if found is None:
                        continue
                    values = row[first - at + found.offset :][: found.numel]
                    whole = replace(found, offset=found.offset + first - begin)
                    parts.setdefault(index, []).append((whole, values))
        return parts


def stretch(tensor: Tensor, first: int, numel: int) -> Tensor:
    """``numel`` elements of a contiguous tensor from ``first`` on, flat; itself if that is all."""
    return tensor if tensor.numel() == numel else tensor.view(-1)[first : first + numel]


def _joined(parts: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not parts:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.cat([part.to(device=device, dtype=dtype).view(-1) for part in parts])
