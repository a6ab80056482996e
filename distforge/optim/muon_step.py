"""The Muon update of one parameter group: filter, move to owners, orthogonalise, move back, apply.

A group goes through in buckets, so that scratch is bounded whatever the size of the model. While
one bucket is orthogonalised, the next one is on its way to its owners and the one before on its
way back. In a single process nothing travels and the rest is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distforge.ops import grokfast_momentum_into_, orthogonal_update_
from distforge.optim.exchange import Gather, Parts, Peers, Routes, Run, Transfer, assemble
from distforge.optim.iteration import iteration_dtype, orthogonalise, travel_dtype, update_scale
from distforge.optim.metrics import StepSample

# What a step needs at its peak for each element of a bucket, three buckets being under way: the
# update and its copy for the owner, the iteration's matrices and temporaries, and the way back.
SCRATCH_BYTES_PER_ELEMENT = 48


@dataclass(frozen=True)
class Shard:
    """A flat tensor that this rank updates, with what belongs to it; all of one length.

    weight: updated in place. grad: any floating dtype, not modified. momentum, ema: float32 or
    wider, updated in place; no ema where the filter is off.
    """

    weight: Tensor
    grad: Tensor
    momentum: Tensor
    ema: Tensor | None


@dataclass
class _Bucket:
    """A bucket on its way: the updates held here and, later, the orthogonal ones owned here."""

    routes: Routes
    held: dict[int, Parts] = field(default_factory=dict)
    owned: dict[int, Tensor] = field(default_factory=dict)
    travelling: Transfer | Gather | None = None


def muon_update(
    group: dict[str, Any],
    shards: Sequence[Shard],
    plan: Sequence[Routes],
    peers: Peers,
    sample: StepSample | None = None,
) -> None:
    """One update of every matrix of the plan; collective over ``peers``.

    Args:
        group: the hyperparameters of a Muon group.
        shards: what ``Fragment.shard`` counts.
        plan: what this rank does in each bucket.
        sample: takes measurements where given.
    """
    steps = _Steps(group, shards, peers, sample)
    departed = orthogonal = None
    for routes in (*plan, None, None):
        arriving = steps.depart(routes) if routes else None
        turned = steps.orthogonalise(departed) if departed else None
        if orthogonal:
            steps.land(orthogonal)
        departed, orthogonal = arriving, turned


class _Steps:
    def __init__(
        self,
        group: dict[str, Any],
        shards: Sequence[Shard],
        peers: Peers,
        sample: StepSample | None,
    ) -> None:
        self._group, self._shards, self._peers, self._sample = group, shards, peers, sample

    def depart(self, routes: Routes) -> _Bucket:
        """Filter and momentum of what is held here; its way to the owners begins."""
        bucket = _Bucket(routes)
        dtype = travel_dtype(self._group["ns_dtype"], self._peers.device)
        for run, update in zip(routes.runs, self._filtered(routes.runs, dtype), strict=True):
            pieces = update.split([fragment.numel for _, fragment in run.parts])
            for (index, fragment), piece in zip(run.parts, pieces, strict=True):
                bucket.held.setdefault(index, []).append((fragment, piece))
        if not routes.silent and not routes.replicated:
            sent = [[part for i in theirs for _, part in bucket.held[i]] for theirs in routes.lent]
            bucket.travelling = Transfer(sent, routes.incoming, self._peers, dtype)
        return bucket

    def orthogonalise(self, bucket: _Bucket) -> _Bucket:
        """The matrices owned here, as soon as they are complete; their way back begins."""
        routes, device = bucket.routes, self._peers.device
        arrived = bucket.travelling.received() if isinstance(bucket.travelling, Transfer) else {}
        matrices = [routes.bucket.matrices[i] for i in routes.owned]
        dtype = travel_dtype(self._group["ns_dtype"], device)
        updates = [
            assemble(matrix.numel, [*bucket.held.get(i, []), *arrived.get(i, [])], dtype, device)
            for i, matrix in zip(routes.owned, matrices, strict=True)
        ]
        bucket.held.clear()
        del arrived
        results = orthogonalise(matrices, updates, self._group)
        if self._sample is not None:
            self._sample.add_orthogonal(matrices, results)
        bucket.owned = dict(zip(routes.owned, results, strict=True))
        bucket.travelling = self._way_back(bucket)
        return bucket

    def _way_back(self, bucket: _Bucket) -> Transfer | Gather | None:
        routes, peers = bucket.routes, self._peers
        if routes.silent:
            return None
        dtype = iteration_dtype(self._group["ns_dtype"], peers.device)
        if routes.replicated:
            return Gather(routes, bucket.owned, peers, dtype)
        parts = [
            [bucket.owned[i][f.offset : f.offset + f.numel] for i, f in route]
            for route in routes.incoming
        ]
        return Transfer(parts, routes.outgoing, peers, dtype)

    def land(self, bucket: _Bucket) -> None:
        """Applies the updates of what is held here."""
        routes = bucket.routes
        returned: dict[int, Parts] = {}
        if isinstance(bucket.travelling, Transfer):
            returned = bucket.travelling.received()
        elif isinstance(bucket.travelling, Gather):
            bucket.owned |= bucket.travelling.received()
        for i, whole in bucket.owned.items():
            returned[i] = [
                (f, whole[f.offset : f.offset + f.numel])
                for f in routes.bucket.matrices[i].held[routes.rank]
            ]
        group = self._group
        by_scale: dict[float, Parts] = {}
        for i, parts in returned.items():
            matrix = routes.bucket.matrices[i]
            scale = update_scale(group["scale"], matrix, transposed=group["transposed"])
            by_scale.setdefault(scale, []).extend(parts)
        for scale, parts in by_scale.items():
            self._apply(parts, scale)

    def _apply(self, parts: Parts, scale: float) -> None:
        weights = []
        for fragment, _ in parts:
            whole = self._shards[fragment.shard].weight
            weights.append(whole[fragment.start : fragment.start + fragment.numel])
        orthogonal_update_(
            weights,
            [update.to(weights[0].device) for _, update in parts],
            lr=self._group["lr"],
            weight_decay=self._group["weight_decay"],
            scale=scale,
        )
        if self._sample is not None:
            self._sample.add_update(parts, scale)

    def _filtered(self, runs: Sequence[Run], dtype: torch.dtype) -> list[Tensor]:
        """The update of each run, flat, in the dtype in which it goes to the iteration."""
        group = self._group
        grads, averages, momenta = [], [], []
        for run in runs:
            shard, stretch = self._shards[run.shard], slice(run.start, run.start + run.numel)
            grad = shard.grad[stretch]
            grads.append(grad.to(torch.promote_types(grad.dtype, torch.float32)))
            momenta.append(shard.momentum[stretch])
            if shard.ema is not None:
                averages.append(shard.ema[stretch])
        updates = [torch.empty_like(grad, dtype=dtype) for grad in grads]
        grokfast_momentum_into_(
            grads,
            averages,
            momenta,
            updates,
            alpha=group["grokfast_alpha"],
            lamb=group["grokfast_lambda"],
            beta=group["momentum"],
            nesterov=group["nesterov"],
        )
        if self._sample is not None:
            for grad, average in zip(grads, averages, strict=False):
                self._sample.add_gradient(grad, average)
        return updates
