"""With whom an optimizer shares its steps, what its flat tensors stand for, and the plans for that.

None of it survives a copy: another object has other parameters, perhaps in another process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from distforge.optim.edits import PendingEdits
from distforge.optim.layout import FlatShard
from distforge.optim.peers import Peers, alone, together
from distforge.optim.placement import group_of, mesh_of, shard_of
from distforge.optim.plans import Plans


class Surroundings:
    """What lies around the parameters of an optimizer.

    Args:
        bucket_cap_mb: bound on the scratch of a step, in MiB.
        peers: the ranks that share whole gradients or flat shards; None for a process alone.
        shards: what the flat tensors stand for that take the place of parameters.
    """

    def __init__(
        self, bucket_cap_mb: float, peers: Peers | None = None, shards: Iterable[FlatShard] = ()
    ) -> None:
        self.peers = peers
        self.shards = {id(shard.tensor): shard for shard in shards}
        self.plans = Plans(bucket_cap_mb)
        self._of_meshes: dict[Any, Peers] = {}

    def all_peers(self, params: Sequence[Tensor]) -> list[Peers]:
        """Those of every kind of parameters, in an order that is the same on all of them.

        Collective the first time that it meets a mesh.
        """
        meshes = dict.fromkeys(mesh_of(param) for param in params)
        peers = [self.peers_of(mesh, params[0].device) for mesh in meshes if mesh is not None]
        return peers if self.peers is None else [self.peers, *peers]

    def peers_of(self, mesh: Any | None, device: torch.device) -> Peers:
        """The ranks that share the work of parameters of one mesh (None: of plain ones)."""
        if mesh is None:
            return self.peers or alone(device)
        if mesh not in self._of_meshes:
            self._of_meshes[mesh] = together(group_of(mesh), device)
        return self._of_meshes[mesh]

    def apply_edits(self, edits: PendingEdits, params: Iterable[Tensor]) -> None:
        """Apply those of the parameters that were just updated, each where its values lie."""
        for param in params:
            if id(param) in self.shards:
                assert self.peers is not None
                edits.apply_to_flat(self.shards[id(param)], self.peers.rank)
            elif param.grad is not None and mesh_of(param) is None:
                edits.apply(param)
            elif param.grad is not None:
                rank = self.peers_of(mesh_of(param), param.device).rank
                edits.apply_to_flat(shard_of(param), rank)
