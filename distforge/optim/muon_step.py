"""The Muon update of one parameter group: filter, move to owners, orthogonalise, move back, apply.

A group goes through in buckets, so that scratch is bounded whatever the size of the model. While
one bucket is orthogonalised, the next one is on its way to its owners and the one before on its
way back. In a single process nothing travels and the rest is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distforge.ops import grokfast_momentum_into_, orthogonal_update_, round_stochastically_
from distforge.ops.rounding import generator_for
from distforge.optim.exchange import Gather, Parts, Route, Routes, Transfer, stretch
from distforge.optim.iteration import Stacks, travel_dtype, update_scale
from distforge.optim.layout import Fragment, Matrix, as_matrices, from_matrices, matrix_shape
from distforge.optim.metrics import StepSample
from distforge.optim.peers import Peers
from distforge.optim.precision import widened


def scratch_bytes(dtype: torch.dtype) -> int:
    """What a step needs at its peak for each element of a bucket, three buckets being under way,
    when it iterates in ``dtype``.

    In elements of the dtype in which updates go to their owners: of the next bucket, what is sent,
    received and assembled (3); of this one, its updates and results (2) and what the iteration
    needs (7.4 at most, on a GPU, where all of a batch is under way); of the last one, its results,
    what is sent back and what is received (3).
    """
    return 16 * travel_dtype(dtype).itemsize


class Shard(NamedTuple):
    """A tensor that this rank updates, with what belongs to it; contiguous, with as many elements.

    weight: updated in place. grad: any floating dtype, not modified. momentum, ema: float32 or
    wider, updated in place; no ema where the filter is off. noise: what its stochastic rounding
    depends on; None rounds to nearest. neurons: NorMuon's second moment of each output, updated in
    place; None where that is off.
    """

    weight: Tensor
    grad: Tensor
    momentum: Tensor
    ema: Tensor | None
    noise: tuple[int, ...] | None = None
    neurons: Tensor | None = None


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
        lent: dict[int, list[Tensor]] = {}
        for i, fragment, update in self._filtered(bucket, dtype):
            if i not in stacks.whole:
                lent.setdefault(i, []).append(update)
            elif update.device != stacks.whole[i].device:  # offloaded
                _write(stacks.whole[i], fragment, update)
        if not routes.silent and not routes.replicated:
            sent = [
                [part for i in dict.fromkeys(i for i, _ in route) for part in lent[i]]
                for route in routes.outgoing
            ]
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
        if self._group["neuron_beta"]:
            for i, whole in bucket.owned.items():
                self._even_out_(bucket.routes.bucket.matrices[i], whole)
        if self._sample is not None:
            matrices = [bucket.routes.bucket.matrices[i] for i in bucket.owned]
            self._sample.add_orthogonal(matrices, list(bucket.owned.values()))
        bucket.travelling = self._way_back(bucket)
        return bucket

    def _even_out_(self, matrix: Matrix, orthogonal: Tensor) -> None:
        """NorMuon: each neuron's part of the update by its own root mean square, averaged over
        steps; the norm of the whole stays (Li et al. 2025, arXiv 2510.05491, algorithm 1)."""
        (fragment,) = matrix.held[self._peers.rank]
        moments = self._shards[fragment.shard].neurons
        assert moments is not None
        stack = as_matrices(orthogonal.view(matrix.shape), matrix.layout).to(moments.dtype)
        inputs = -2 if self._group["transposed"] else -1
        squares = stack.square().mean(dim=inputs, keepdim=True)
        first = fragment.start // stack.shape[inputs]
        moment = moments[first : first + squares.numel()].view(squares.shape)
        moment.lerp_(squares, 1 - self._group["neuron_beta"])
        even = stack / (moment.sqrt() + 1e-10)
        norms = [torch.linalg.matrix_norm(x, keepdim=True) for x in (stack, even)]
        even *= norms[0] / norms[1].clamp_min(1e-30)
        orthogonal.copy_(from_matrices(even, matrix.shape, matrix.layout).view(orthogonal.shape))

    def _way_back(self, bucket: _Bucket) -> Transfer | Gather | None:
        routes, peers = bucket.routes, self._peers
        if routes.silent:
            return None
        if routes.replicated:
            gather = Gather(routes, bucket.owned, peers, self._dtype)
            bucket.owned = {}  # they come with the others'
            return gather
        parts = [
            [stretch(bucket.owned[i], f.offset, f.numel) for i, f in route]
            for route in routes.answers
        ]
        return Transfer(parts, routes.awaited, peers, self._dtype)

    def land(self, bucket: _Bucket) -> None:
        """Applies the updates of what is held here."""
        routes = bucket.routes
        if isinstance(bucket.travelling, Gather):
            for returned in bucket.travelling.received():
                self._update(routes, returned)
            return
        returned = {}
        if isinstance(bucket.travelling, Transfer):
            returned = bucket.travelling.received()
        for i, whole in bucket.owned.items():
            returned[i] = [
                (f, stretch(whole, f.offset, f.numel))
                for f in routes.bucket.matrices[i].held[routes.rank]
            ]
        self._update(routes, returned)

    def _update(self, routes: Routes, returned: dict[int, Parts]) -> None:
        group = self._group
        by_scale: dict[float, Parts] = {}
        for i, parts in returned.items():
            matrix = routes.bucket.matrices[i]
            _, m, n = matrix_shape(matrix.shape, matrix.layout)
            scale = update_scale(group["scale"], m, n, transposed=group["transposed"])
            by_scale.setdefault(scale, []).extend(parts)
        for scale, parts in by_scale.items():
            self._apply(parts, scale)

    def _apply(self, parts: Parts, scale: float) -> None:
        shards = [self._shards[f.shard] for f, _ in parts]
        weights = [
            stretch(s.weight, f.start, f.numel) for s, (f, _) in zip(shards, parts, strict=True)
        ]
        updates = [update.to(weights[0].device) for _, update in parts]
        if shards[0].noise is None:
            self._change(weights, updates, scale)
        else:  # one after the other: a float32 copy of all would be larger than a bucket
            for shard, (f, _), weight, update in zip(shards, parts, weights, updates, strict=True):
                assert shard.noise is not None
                wide = weight.float()
                self._change([wide], [update], scale)
                # Of the whole matrix's element, not of the rank: replicas round alike.
                key = (*shard.noise, f.start, f.offset)
                round_stochastically_(weight, wide, generator_for(weight.device, *key))
        if self._sample is not None:
            self._sample.add_update(parts, scale)

    def _change(self, weights: list[Tensor], updates: list[Tensor], scale: float) -> None:
        group = self._group
        decay = group["weight_decay"]
        if group["cautious_weight_decay"] and decay:
            for weight, update in zip(weights, updates, strict=True):
                decay_where_agreed_(weight, update.view(weight.shape), group["lr"] * decay)
            decay = 0.0
        orthogonal_update_(weights, updates, lr=group["lr"], weight_decay=decay, scale=scale)

    def _filtered(
        self, bucket: _Bucket, dtype: torch.dtype
    ) -> Iterator[tuple[int, Fragment, Tensor]]:
        """The update of each fragment held here that is of use, in place in the stacks where they
        can take it. What others filter as well is worked through in portions and given up."""
        routes = bucket.routes
        used = [pair for pair in routes.held if pair[0] in routes.used]
        if used:
            updates = self._filter(used, bucket, dtype)
            yield from ((i, f, update) for (i, f), update in zip(used, updates, strict=True))
        portion: Route = []
        elements = 0
        for i, fragment in routes.held:
            if i in routes.used:
                continue
            if portion and elements + fragment.numel > routes.window:
                self._filter(portion, bucket, dtype)
                portion, elements = [], 0
            portion.append((i, fragment))
            elements += fragment.numel
        if portion:
            self._filter(portion, bucket, dtype)

    def _filter(self, held: Route, bucket: _Bucket, dtype: torch.dtype) -> list[Tensor]:
        group, whole = self._group, bucket.stacks.whole
        grads, averages, momenta, updates = [], [], [], []
        for i, f in held:
            shard = self._shards[f.shard]
            grad = stretch(shard.grad, f.start, f.numel)
            grads.append(widened(grad))
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


def decay_where_agreed_(weight: Tensor, update: Tensor, amount: float) -> None:
    """weight <- (1 - amount) weight where the update and the decay have the same direction: W and
    the update that is subtracted have one sign (Chen et al. 2025, "Cautious weight decay",
    arXiv 2510.12402)."""
    agreed = (weight * update.to(weight.dtype)) >= 0
    weight.mul_(1.0 - amount * agreed.to(weight.dtype))


def _write(whole: Tensor, fragment: Fragment, values: Tensor) -> None:
    place = stretch(whole, fragment.offset, fragment.numel)
    place.copy_(values.view(place.shape))
