"""Moving the elements of a bucket between the ranks that hold them and the ranks that own them.

Every transfer is asynchronous: it is begun, other work is done, and then it is waited for. Ranks
begin the same transfers in the same order, since they follow the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.optim.layout import Fragment
from distforge.optim.plan import Batch, Bucket, batches
from distforge.optim.precision import Peers

Parts = list[tuple[Fragment, Tensor]]
Route = list[tuple[int, Fragment]]


@dataclass(frozen=True)
class Routes:
    """What one rank does in one bucket. Numbers are those of the bucket's matrices.

    held: the fragments on this rank.
    owned: the matrices that this rank orthogonalises. batches: the same, by shape.
    lent: by peer, the matrices that the peer owns and of which fragments are held here.
    outgoing: by peer, those fragments.
    incoming: by peer, fragments held there of matrices that this rank owns.
    replicated: every rank holds everything.
    silent: no rank sends anything.
    """

    bucket: Bucket
    rank: int
    size: int

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
    def lent(self) -> list[list[int]]:
        return [list(dict.fromkeys(i for i, _ in route)) for route in self.outgoing]

    @cached_property
    def outgoing(self) -> list[Route]:
        return [self._route(self.rank, peer) for peer in range(self.size)]

    @cached_property
    def incoming(self) -> list[Route]:
        return [self._route(peer, self.rank) for peer in range(self.size)]

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

    def _route(self, holder: int, owner: int) -> Route:
        """Fragments on ``holder`` of what ``owner`` owns; none where they are one rank."""
        if holder == owner:
            return []
        return [
            (i, fragment)
            for i, (matrix, chosen) in enumerate(
                zip(self.bucket.matrices, self.bucket.owners, strict=True)
            )
            if chosen == owner
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
        self._sent = self._sent[:0]
        flat = [pair for route in self._routes for pair in route]
        parts: dict[int, Parts] = {}
        pieces = self._buffer.split([fragment.numel for _, fragment in flat])
        for (index, fragment), piece in zip(flat, pieces, strict=True):
            parts.setdefault(index, []).append((fragment, piece))
        return parts


class Gather:
    """An all-gather under way: each owner's matrices go to everyone, whole."""

    def __init__(
        self,
        routes: Routes,
        results: Mapping[int, Tensor],
        peers: Peers,
        dtype: torch.dtype,
    ) -> None:
        device = peers.device
        self._routes = routes
        sizes = [0] * routes.size
        for matrix, owner in zip(routes.bucket.matrices, routes.bucket.owners, strict=True):
            sizes[owner] += matrix.numel
        longest = max(sizes)
        self._sent = torch.zeros(longest, dtype=dtype, device=device)
        mine = _joined([results[i] for i in routes.owned], dtype, device)
        self._sent[: mine.numel()] = mine
        self._buffer = torch.empty(routes.size * longest, dtype=dtype, device=device)
        self._work = dist.all_gather_into_tensor(
            self._buffer, self._sent, group=peers.group, async_op=True
        )

    def received(self) -> dict[int, Tensor]:
        """Every matrix of the bucket that another rank owns, by number."""
        self._work.wait()
        rows = self._buffer.view(self._routes.size, -1)
        at = [0] * self._routes.size
        whole: dict[int, Tensor] = {}
        bucket = self._routes.bucket
        for index, (matrix, owner) in enumerate(zip(bucket.matrices, bucket.owners, strict=True)):
            piece = rows[owner, at[owner] : at[owner] + matrix.numel]
            at[owner] += matrix.numel
            if owner != self._routes.rank:
                whole[index] = piece
        return whole


def stretch(tensor: Tensor, first: int, numel: int) -> Tensor:
    """``numel`` elements of a contiguous tensor from ``first`` on, flat; itself if that is all."""
    return tensor if tensor.numel() == numel else tensor.view(-1)[first : first + numel]


def _joined(parts: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not parts:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.cat([part.to(device=device, dtype=dtype).view(-1) for part in parts])
