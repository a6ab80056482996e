"""The plans of a step, made when a set of parameters is first updated and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distforge.optim.exchange import Routes
from distforge.optim.layout import FlatShard, Fragment, Matrix, as_matrices, cut
from distforge.optim.muon_step import scratch_bytes
from distforge.optim.peers import Peers
from distforge.optim.placement import held_by_ranks, mesh_of
from distforge.optim.plan import plan_buckets

# Where gradients are missing at random, each step has a plan of its own.
_KEPT = 32


@dataclass(frozen=True)
class _Plan:
    routes: list[Routes]
    load: tuple[float, ...]


class Plans:
    """Plans by the parameters they are for.

    Args:
        bucket_cap_mb: bound on the scratch of a step, in MiB.
    """

    def __init__(self, bucket_cap_mb: float) -> None:
        self._bytes = int(bucket_cap_mb * 2**20)
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()

    def __len__(self) -> int:
        return len(self._plans)

    def of(
        self,
        params: Sequence[Tensor],
        group: dict[str, Any],
        peers: Peers,
        shards: Mapping[int, FlatShard],
        load: list[float],
    ) -> list[Routes]:
        """What this rank does in each bucket of the parameters' update.

        Args:
            params: of one kind: plain, flat shards, or DTensors of one mesh.
            group: hyperparameters.
            shards: what flat tensors stand for, by id.
            load: the work of each rank in this step so far; that of the plan is added.
        """
        dtype = peers.iteration_dtype(group["ns_dtype"])
        what = tuple((id(p), p.shape, getattr(p, "placements", None)) for p in params)
        key = (what, group["layout"], dtype, tuple(load) if peers.size > 1 else ())
        if key in self._plans:
            self._plans.move_to_end(key)
        else:
            capacity = self._bytes // scratch_bytes(dtype)
            matrices = _matrices(params, group, peers, shards)
            after = list(load)
            buckets = plan_buckets(matrices, peers.size, capacity, after)
            routes = [Routes(bucket, peers.rank, peers.size, capacity) for bucket in buckets]
            self._plans[key] = _Plan(routes, tuple(after))
            if len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        load[:] = self._plans[key].load
        return self._plans[key].routes


def _matrices(
    params: Sequence[Tensor],
    group: dict[str, Any],
    peers: Peers,
    shards: Mapping[int, FlatShard],
) -> list[Matrix]:
    layout = group["layout"]
    matrices: list[Matrix] = []
    for number, param in enumerate(params):
        shape, mesh = tuple(param.shape), mesh_of(param)
        if id(param) in shards:
            assert len(params) == 1, "DeepSpeed updates one flat tensor of a group at a time"
            for piece in shards[id(param)].pieces:
                matrices += cut(piece.shape, layout, piece.held)
        elif mesh is not None:
            held, copy_of = held_by_ranks(shape, mesh, tuple(param.placements))  # type: ignore[attr-defined]
            numbered = [[_of_shard(f, number) for f in fragments] for fragments in held]
            matrices += cut(shape, layout, numbered, copy_of if len(set(copy_of)) > 1 else ())
        else:
            as_matrices(param, layout)  # refuses what has lost its shape
            whole = [[Fragment(number, 0, 0, param.numel())]] * peers.size
            matrices += cut(shape, layout, whole, tuple(range(peers.size)))
    return matrices


def _of_shard(fragment: Fragment, number: int) -> Fragment:
    return Fragment(number, fragment.start, fragment.offset, fragment.numel)
