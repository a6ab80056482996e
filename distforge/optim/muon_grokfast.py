"""MuonGrokfast: Grokfast's gradient filter, Muon's orthogonalised momentum, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distforge.optim.adamw import adamw_update_
from distforge.optim.config import MuonGrokfastConfig
from distforge.optim.edits import InPlace, PendingEdits
from distforge.optim.gradient_checks import require_usable_gradients
from distforge.optim.hyperparameters import configured, readable
from distforge.optim.layout import FlatShard
from distforge.optim.metrics import OptimizerMetrics, StepSample
from distforge.optim.muon_step import muon_update
from distforge.optim.param_groups import groups_by_role, split_parameters
from distforge.optim.param_state import (
    Held,
    StepCounts,
    adamw_portions,
    complete_group,
    default_hyperparameters,
    held,
    muon_shard,
)
from distforge.optim.peers import Peers, together
from distforge.optim.placement import mesh_of
from distforge.optim.refusals import (
    refuse_capture,
    require_shard_gradients,
    require_whole_matrices,
)
from distforge.optim.roles import NamedParameters
from distforge.optim.saving import restored_bit_by_bit, saved
from distforge.optim.small_step import takes_small, update_small
from distforge.optim.surroundings import Surroundings

ParamGroup = dict[str, Any]


class MuonGrokfast(torch.optim.Optimizer):
    """Muon with Grokfast for hidden matrices and AdamW for everything else, in one optimizer.

    One step, for a matrix W (m x n) with gradient g, already averaged, unscaled and clipped:

    1. Grokfast filter: h <- alpha h + (1 - alpha) g, starting from the first g; g^ = g + lambda h.
       A gradient that does not change is amplified by 1 + lambda; fast changes pass at 1.
       (Lee et al. 2024, "Grokfast", the EMA variant. With lambda = 0 there is no h.)
    2. Momentum: m <- beta m + (1 - beta) g^; u = (1 - beta) g^ + beta m (Nesterov), else u = m.
    3. O = NewtonSchulz(u), about U V^T of u's singular value decomposition (Jordan et al. 2024).
    4. W <- (1 - lr wd) W - lr s O, with s = sqrt(max(1, m/n)) or 0.2 sqrt(max(m, n)).

    Steps 1 and 2 are one elementwise pass and step 3 one batch per shape (distforge.ops), bucket by
    bucket, so that scratch is bounded. Embeddings, head, norms and biases get AdamW;
    distforge.optim.roles says which is which.

    One process or many, each matrix is orthogonalised exactly once per step, by its owner:

    - alone, this process owns everything and nothing is sent;
    - replicas (DDP, ZeRO stage 0; `share_work`): every rank has whole, reduced gradients; each
      orthogonalises its share, and the results are gathered;
    - shards (ZeRO 1 to 3; `distforge.optim.sharding.bind_zero`): momentum and average are flat
      shards. Fragments of the momentum go to each matrix's owner by an all-to-all, and its update
      comes back by another: at most 2 elements a Muon parameter and world size are sent by a rank;
    - DTensors (FSDP2, tensor parallelism): the same, over the ranks of their mesh. Where a mesh
      holds several copies (HSDP) every one is answered: with more than two, as many elements.

    The weights are the same whichever it is, up to rounding.

    State per parameter, float32 even where parameter and gradient are 16 bit (a bf16 average
    stalls as soon as g is close to h):

        exp_avg       momentum m, or Adam's first moment
        exp_avg_sq    Grokfast's h (absent when lambda = 0), or Adam's second moment
        grokfast_ema  Grokfast's h of an AdamW parameter, with ``grokfast_on_adamw``
        step          number of updates; replaced, never incremented in place, because loaded
                      checkpoints may share one tensor among parameters

    The first, second and last names are those that DeepSpeed's universal checkpoints look for.
    All hyperparameters live in ``param_groups``; ``param_groups[i]["lr"]`` drives schedulers, and a
    "momentum" there that they cycle is Muon's, and Adam's first beta. QK-Clip
    (distforge.optim.qk_clip) is applied by its owner through `edit_after_step`, because it needs
    the attention logits of the forward pass.

    Weights of 16 bits that have no float32 master are rounded stochastically (`seed`): to nearest,
    the presets' rates would not move them.

    A gradient that is infinite or not a number raises FloatingPointError before any state or
    weight of the groups given has changed, on all ranks that share the work. (DeepSpeed gives one
    group at a time, after its own check.) Parameters without a gradient are skipped; a shard
    without one is an error.

    DeepSpeed orthogonalises on its own when a class name contains "muon" and parameters carry
    an attribute ``use_muon``; this class never sets it.

    Args:
        params: the model, whose modules tell best what its parameters are; or what
            ``model.named_parameters()`` gives; or parameter groups as torch takes them, with named
            parameters or with "algorithm" ("muon" or "adamw"), which may set any hyperparameter of
            their own, and for Muon "layout" and "transposed" (roles.Role). Frozen
            parameters are taken too, and trained once they have gradients.
        config: hyperparameters of all groups that do not set their own; the defaults without it.
        keywords: fields of ``config`` to change, and ``lr``, ``betas`` and ``eps`` as torch's
            AdamW has them: ``MuonGrokfast(model, lr=3e-4, weight_decay=0.1)``.

    Raises:
        InputError: no trainable parameter, one without a name or whose shape is gone (flattened or
            partitioned), one in two groups, an unknown algorithm or hyperparameter, a Muon
            parameter that is not a matrix, or a sparse gradient.
    """

    def __init__(
        self,
        params: nn.Module | NamedParameters | Iterable[ParamGroup],
        config: MuonGrokfastConfig | None = None,
        **keywords: Any,
    ) -> None:
        self.config = config = configured(config, keywords)
        self._forget_surroundings()
        items: Any = params if isinstance(params, nn.Module) else list(params)
        ready = isinstance(items, list) and any(isinstance(item, dict) for item in items)
        groups = items if ready else split_parameters(items, config, frozen=True)
        # What a scheduler asks for to know whether there is a momentum to cycle.
        defaults = {"lr": config.muon_lr, "momentum": config.momentum}
        super().__init__(groups, defaults)

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        kind: Any = type(self)
        if not hasattr(kind.step, "untraced"):
            # Else torch.compile traces torch's wrapper up to the step, and breaks off twice.
            kind.step = torch._disable_dynamo(kind.step)  # type: ignore[attr-defined]
            kind.step.untraced = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        if "config" in state:  # else it is torch.optim that loads a state_dict into this object
            self._forget_surroundings()
        for index, group in enumerate(self.param_groups):
            kept = before[index] if before else group
            # What was saved before a hyperparameter came to be.
            for name, value in default_hyperparameters(group["algorithm"], self.config).items():
                group.setdefault(name, kept.get(name, value))

    def _forget_surroundings(self) -> None:
        self._around = Surroundings(self.config.bucket_cap_mb)
        self._edits = PendingEdits()
        self._sample: StepSample | None = None

    def share_work(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Let each rank orthogonalise its share; for ranks that all have whole, reduced gradients.

        Collective from now on: every rank of ``process_group`` (None: all) must step together,
        with gradients for the same parameters.
        """
        device = self.param_groups[0]["params"][0].device
        self._around = Surroundings(self.config.bucket_cap_mb, together(process_group, device))

    def attach_shards(
        self, shards: Iterable[FlatShard], device: torch.device, process_group: Any
    ) -> None:
        """Tell what the flat tensors stand for that now take the place of parameters; collective.

        Args:
            shards: one for each flat tensor that will be in ``param_groups``, on every rank.
            device: where matrices are put together and orthogonalised.
            process_group: the ranks that hold the parts.
        """
        peers = together(process_group, device)
        self._around = Surroundings(self.config.bucket_cap_mb, peers, shards)

    def edit_after_step(self, parameter: Tensor, in_place: InPlace) -> None:
        """Have ``in_place`` change the parameter right after its next update, in every copy.

        Args:
            parameter: the model's own, sharded or not.
            in_place: an elementwise affine change of a tensor of the parameter's shape.
        """
        self._edits.add(parameter, in_place)

    def drop_edits(self) -> None:
        """Forget the edits that no step has applied."""
        self._edits.clear()

    def start_sampling(self) -> None:
        """Measure the next step; it costs some passes over the gradient."""
        self._sample = StepSample()

    def sampled(self) -> OptimizerMetrics:
        """What was measured since `start_sampling`; collective where ranks share the work."""
        assert self._sample is not None, "call start_sampling() before the step"
        sample, self._sample = self._sample, None
        peers = self._around.all_peers(self._params())
        return sample.reduced(max(peers, key=lambda some: some.size, default=None))

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Adds a group with "params" and "algorithm"; missing hyperparameters come from config.

        Without "algorithm", named parameters or a module are added by their roles, in as many
        groups. Raises InputError as the class does.
        """
        if "algorithm" not in param_group:
            for group in groups_by_role(param_group, self.config):
                self.add_param_group(group)
            return
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        group = complete_group(param_group, self.config, taken, len(self.param_groups))
        super().add_param_group(group)
        if group["algorithm"] == "adamw" and "momentum" not in param_group:
            del group["momentum"]  # of torch's defaults; a scheduler may set it

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss, if any.

        Raises FloatingPointError for a non-finite gradient and InputError for a hyperparameter that
        is no number or out of its range, with nothing changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse_capture()
        groups = [readable(group, index) for index, group in enumerate(self.param_groups)]
        around = self._around
        unchanged = "weight of this group" if around.shards else "weight"
        for index, group in enumerate(groups):
            require_whole_matrices(group, index, around.shards, around.peers)
        require_usable_gradients(groups, around.all_peers(self._params()), unchanged)
        for group in groups:
            require_shard_gradients(group, around.shards)
        undivided = around.peers is None and self._sample is None
        first, loads = 0, defaultdict[Peers, list[float]](list)
        for group in groups:
            numbered = list(enumerate(group["params"], first))
            first += len(numbered)
            present = [(number, param) for number, param in numbered if param.grad is not None]
            if group["algorithm"] == "muon" and undivided and takes_small(group):
                present = update_small(group, present, self.state)
            parts = (held(param, group, (self.config.seed, number)) for number, param in present)
            if group["algorithm"] == "muon":
                self._muon_step(group, list(parts), loads)
            else:
                self._adamw_step(group, parts)
            if self._edits:
                around.apply_edits(self._edits, group["params"])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.Optimizer's. A shard without Grokfast's average (lambda = 0) gets a
        stand-in of zeros that takes no memory, because DeepSpeed's universal checkpoints want both
        buffers of every shard; the next step drops it. Functions among the hyperparameters are
        left out."""
        return saved(super().state_dict(), self._params(), self._around.shards)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores hyperparameters and state bit by bit, each buffer in the dtype it was saved in.

        The buffers are copied: two optimizers loaded from one dict do not share them. A
        hyperparameter that the dict lacks stays as it is. Raises InputError when the dict's groups
        use other algorithms than these groups.
        """
        with restored_bit_by_bit(self):
            super().load_state_dict(state_dict)

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _muon_step(
        self, group: ParamGroup, parts: list[Held], loads: dict[Peers, list[float]]
    ) -> None:
        around = self._around
        # A model may be spread over devices, dtypes and meshes; what goes together is of one.
        alike: dict[tuple[Any, ...], list[Held]] = defaultdict(list)
        for part in parts:
            alike[part.weight.device, part.weight.dtype, mesh_of(part.param)].append(part)
        for (device, _, mesh), some in alike.items():
            peers = around.peers_of(mesh, device)
            load = loads[peers] = loads[peers] or [0.0] * peers.size
            params = [part.param for part in some]
            routes = around.plans.of(params, group, peers, around.shards, load)
            contiguous = [part.contiguous() for part in some]
            counts = StepCounts()
            shards = [
                muon_shard(part, self.state[part.param], group, counts) for part in contiguous
            ]
            muon_update(group, shards, routes, peers, self._sample)
            for part, shard in zip(some, shards, strict=True):
                if shard.weight.data_ptr() != part.weight.data_ptr():
                    part.weight.copy_(shard.weight)

    def _adamw_step(self, group: ParamGroup, parts: Iterable[Held]) -> None:
        first, second = group["betas"]
        scratch = int(self.config.bucket_cap_mb * 2**20)
        for entries in adamw_portions(parts, self.state, group, scratch):
            adamw_update_(
                entries,
                lr=group["lr"],
                betas=(group.get("momentum", first), second),
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                cautious=group["cautious_weight_decay"],
            )
