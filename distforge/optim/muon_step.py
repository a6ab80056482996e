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
from distforge.optim.exchange import Gather, Parts, Routes, Transfer, stretch
from distforge.optim.iteration import Stacks, travel_dtype, update_scale
from distforge.optim.layout import Fragment
from distforge.optim.metrics import StepSample
from distforge.optim.precision import Peers, wide_dtype


def scratch_bytes(dtype: torch.dtype) -> int:
    """What a step needs at its peak for each element of a bucket, three buckets being under way,
    when it iterates in ``dtype``.

    In elements of the dtype in which updates go to their owners: of the next bucket, what is sent,
    received and assembled (3); of this one, its updates and results (2) and what the iteration
    needs (7.4 at most, on a GPU, where all of a batch is under way); of the last one, its results,
    what is sent back and what is received (3).
    """
    return 16 * travel_dtype(dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """A tensor that this rank updates, with what belongs to it; contiguous, with as many elements.

    weight: updated in place. grad: any floating dtype, not modified. momentum, ema: float32 or
    wider, updated in place; no ema where the filter is off.
    """

    weight: Tensor
    grad: Tensor
    momentum: Tensor
    ema: Tensor | None


@dataclass
class _Bucket:
    """A bucket on its way: the updates of what is owned here and, later, the orthogonal ones."""

    routes: Routes
    stacks: Stacks
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
        self._dtype = peers.iteration_dtype(group["ns_dtype"])

    def depart(self, routes: Routes) -> _Bucket:
        """Filter and momentum of what is held here; its way to the owners begins."""
        dtype = travel_dtype(self._dtype)
        stacks = Stacks(routes.bucket.matrices, routes.batches, dtype, self._peers.device)
        bucket = _Bucket(routes, stacks)
        lent: dict[int, Parts] = {}
        for (i, fragment), update in zip(routes.held, self._filtered(bucket, dtype), strict=True):
            if i not in stacks.whole:
                lent.setdefault(i, []).append((fragment, update))
            elif update.device != stacks.whole[i].device:  # offloaded
                _write(stacks.whole[i], fragment, update)
        if not routes.silent and not routes.replicated:
            sent = [[part for i in theirs for _, part in lent[i]] for theirs in routes.lent]
            bucket.travelling = Transfer(sent, routes.incoming, self._peers, dtype)
        return bucket

    def orthogonalise(self, bucket: _Bucket) -> _Bucket:
        """The matrices owned here, as soon as they are complete; their way back begins."""
        if isinstance(bucket.travelling, Transfer):
            for i, parts in bucket.travelling.received().items():
                for fragment, values in parts:
                    _write(bucket.stacks.whole[i], fragment, values)
            bucket.travelling = None  # with what it received
        bucket.owned = bucket.stacks.orthogonalised(self._group, self._dtype)
        if self._sample is not None:
            matrices = [bucket.routes.bucket.matrices[i] for i in bucket.owned]
            self._sample.add_orthogonal(matrices, list(bucket.owned.values()))
        bucket.travelling = self._way_back(bucket)
        return bucket

    def _way_back(self, bucket: _Bucket) -> Transfer | Gather | None:
        routes, peers = bucket.routes, self._peers
        if routes.silent:
            return None
        if routes.replicated:
            return Gather(routes, bucket.owned, peers, self._dtype)
        parts = [
            [stretch(bucket.owned[i], f.offset, f.numel) for i, f in route]
            for route in routes.incoming
        ]
        return Transfer(parts, routes.outgoing, peers, self._dtype)

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
                (f, stretch(whole, f.offset, f.numel))
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
        weights = [stretch(self._shards[f.shard].weight, f.start, f.numel) for f, _ in parts]
        orthogonal_update_(
            weights,
            [update.to(weights[0].device) for _, update in parts],
            lr=self._group["lr"],
            weight_decay=self._group["weight_decay"],
            scale=scale,
        )
        if self._sample is not None:
            self._sample.add_update(parts, scale)

    def _filtered(self, bucket: _Bucket, dtype: torch.dtype) -> list[Tensor]:
        """The update of each fragment held here, in place in the stacks where they can take it."""
        group, whole = self._group, bucket.stacks.whole
        grads, averages, momenta, updates = [], [], [], []
        for i, f in bucket.routes.held:
            shard = self._shards[f.shard]
            grad = stretch(shard.grad, f.start, f.numel)
            grads.append(grad.to(wide_dtype(grad)))
            momenta.append(stretch(shard.momentum, f.start, f.numel))
            if shard.ema is not None:
                averages.append(stretch(shard.ema, f.start, f.numel))
            if i in whole and whole[i].device == grad.device:
                updates.append(stretch(whole[i], f.offset, f.numel))
            else:
                updates.append(torch.empty_like(grad, dtype=dtype))
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


def _write(whole: Tensor, fragment: Fragment, values: Tensor) -> None:
    place = stretch(whole, fragment.offset, fragment.numel)
    place.copy_(values.view(place.shape))
