"""MuonGrokfast: Grokfast's gradient filter, Muon's orthogonalised momentum, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.errors import InputError
from distforge.optim.adamw import adamw_update_
from distforge.optim.config import MuonGrokfastConfig
from distforge.optim.edits import InPlace, PendingEdits
from distforge.optim.exchange import Routes
from distforge.optim.gradient_checks import require_usable_gradients
from distforge.optim.layout import FlatShard, Fragment, Matrix, as_matrices, cut
from distforge.optim.metrics import OptimizerMetrics, StepSample
from distforge.optim.muon_step import muon_update, scratch_bytes
from distforge.optim.param_groups import NamedParameters, split_parameters
from distforge.optim.param_state import StepCounts, adamw_entry, complete_group, muon_shard
from distforge.optim.plan import plan_buckets
from distforge.optim.precision import Peers, alone, together

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
    distforge.optim.param_groups says which is which.

    One process or many, each matrix is orthogonalised exactly once per step, by its owner:

    - alone, this process owns everything and nothing is sent;
    - replicas (DDP, ZeRO stage 0; `share_work`): every rank has whole, reduced gradients; each
      orthogonalises its share, and the results are gathered;
    - shards (ZeRO 1 to 3; `distforge.optim.sharding.bind_zero`): momentum and average are flat
      shards. Fragments of the momentum go to each matrix's owner by an all-to-all, and its update
      comes back by another: at most 2 elements a Muon parameter and world size are sent by a rank.

    The weights are the same whichever it is, up to rounding.

    State per parameter, float32 even where parameter and gradient are 16 bit (a bf16 average
    stalls as soon as g is close to h):

        exp_avg       momentum m, or Adam's first moment
        exp_avg_sq    Grokfast's h (absent when lambda = 0), or Adam's second moment
        grokfast_ema  Grokfast's h of an AdamW parameter, with ``grokfast_on_adamw``
        step          number of updates; replaced, never incremented in place, because loaded
                      checkpoints may share one tensor among parameters

    The first, second and last names are those that DeepSpeed's universal checkpoints look for.
    All hyperparameters live in ``param_groups``; ``param_groups[i]["lr"]`` drives schedulers and
    ``["initial_lr"]`` keeps where it started. QK-Clip (distforge.optim.qk_clip) is applied by its
    owner through `edit_after_step`, because it needs the attention logits of the forward pass.

    A gradient that is infinite or not a number raises FloatingPointError before any state or
    weight has changed, on all ranks that share the work, so a caller may drop the batch and go on.
    Parameters without a gradient are skipped; a shard without one is an error.

    DeepSpeed orthogonalises on its own when a class name contains "muon" and parameters carry
    an attribute ``use_muon``; this class never sets it.

    Args:
        named_parameters: what ``model.named_parameters()`` gives, or ready parameter groups, each
            with "params" and "algorithm" ("muon" or "adamw"), which may set any hyperparameter
            of its own, and for Muon "layout" and "transposed" (param_groups.Role).
        config: hyperparameters of all groups that do not set their own.

    Raises:
        InputError: no trainable parameter, a parameter in two groups, an unknown algorithm, a
            Muon parameter that is not a matrix, or a sparse gradient.
    """

    def __init__(
        self, named_parameters: NamedParameters | Iterable[ParamGroup], config: MuonGrokfastConfig
    ) -> None:
        self.config = config
        items: list[Any] = list(named_parameters)
        ready = bool(items) and all(isinstance(item, dict) for item in items)
        self._forget_surroundings()
        super().__init__(items if ready else split_parameters(items, config), defaults={})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "config" in state:  # else it is torch.optim that loads a state_dict into this object
            self._forget_surroundings()

    def _forget_surroundings(self) -> None:
        # None of this survives a copy: other parameters, perhaps another process.
        self._peers: Peers | None = None
        self._shards: dict[int, FlatShard] = {}
        self._plans: dict[tuple[tuple[int, torch.Size], ...], list[Routes]] = {}
        self._edits = PendingEdits()
        self._sample: StepSample | None = None

    def share_work(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Let each rank orthogonalise its share; for ranks that all have whole, reduced gradients.

        Collective from now on: every rank of ``process_group`` (None: all) must step together,
        with gradients for the same parameters.
        """
        device = self.param_groups[0]["params"][0].device
        self._peers = together(process_group, device)
        self._plans.clear()

    def attach_shards(
        self, shards: Iterable[FlatShard], device: torch.device, process_group: Any
    ) -> None:
        """Tell what the flat tensors stand for that now take the place of parameters; collective.

        Args:
            shards: one for each flat tensor that will be in ``param_groups``, on every rank.
            device: where matrices are put together and orthogonalised.
            process_group: the ranks that hold the parts.
        """
        self._peers = together(process_group, device)
        self._shards = {id(shard.tensor): shard for shard in shards}
        self._plans.clear()

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
        return sample.reduced(self._peers)

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Adds a group with "params" and "algorithm"; missing hyperparameters come from config.

        Raises InputError as the class does.
        """
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        super().add_param_group(complete_group(param_group, self.config, taken))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss, if any.

        Raises FloatingPointError for a non-finite gradient, with nothing changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        require_usable_gradients(self.param_groups, self._peers)
        for group in self.param_groups:
            if any(id(param) in self._shards for param in group["params"]):
                self._require_shard_gradients(group)
            if group["algorithm"] == "muon":
                self._muon_step(group)
            else:
                self._adamw_step(group)
            if self._edits:
                self._apply_edits(group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.Optimizer's. A shard without Grokfast's average (lambda = 0) gets a
        stand-in of zeros that takes no memory, because DeepSpeed's universal checkpoints want both
        buffers of every shard; the next step drops it."""
        result = super().state_dict()
        packed = [key for group in result["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(packed, params, strict=True):
            state = result["state"].get(key, {})
            if id(param) in self._shards and "exp_avg" in state and "exp_avg_sq" not in state:
                stand_in = state["exp_avg"].new_zeros(()).expand(state["exp_avg"].shape)
                result["state"][key] = {**state, "exp_avg_sq": stand_in}
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores hyperparameters and state bit by bit, each buffer in the dtype it was saved in.

        The buffers are copied: two optimizers loaded from one dict do not share them. Raises
        InputError when the dict's groups use other algorithms than these groups.
        """
        saved_groups = state_dict["param_groups"]
        for index, (mine, saved) in enumerate(zip(self.param_groups, saved_groups, strict=False)):
            if saved.get("algorithm") != mine["algorithm"]:
                raise InputError(
                    f"group {index} was saved with algorithm = {saved.get('algorithm')!r}, but "
                    f"this optimizer trains it with {mine['algorithm']!r}: "
                    "build the optimizer as it was for the saved run."
                )
        super().load_state_dict(state_dict)
        # torch.optim casts buffers to the parameter's dtype: float32 momentum of a bf16 parameter
        # would lose its low half.
        keys = [key for group in saved_groups for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(keys, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if name != "step":
                    self.state[param][name] = value.detach().to(param.device, copy=True)

    def _require_shard_gradients(self, group: ParamGroup) -> None:
        missing = [p for p in group["params"] if p.grad is None]
        if missing:
            names = [piece.name for piece in self._shards[id(missing[0])].pieces]
            raise InputError(
                f"the shard of {names[0]} and {len(names) - 1} others has no gradient; no weight "
                "has changed: run backward before step, or leave frozen parameters out."
            )

    def _muon_step(self, group: ParamGroup) -> None:
        # A model may be spread over devices and dtypes; what goes together is of one.
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for param in group["params"]:
            if param.grad is not None:
                alike[param.device, param.dtype].append(param)
        for (device, _), params in alike.items():
            peers = self._peers or alone(device)
            key = tuple((id(param), param.shape) for param in params)
            if key not in self._plans:
                self._plans[key] = self._plan(params, group, peers)
            weights = [param.detach().contiguous() for param in params]
            counts: StepCounts = {}
            shards = [
                muon_shard(param, weight, self.state[param], group, counts)
                for param, weight in zip(params, weights, strict=True)
            ]
            muon_update(group, shards, self._plans[key], peers, self._sample)
            for param, weight in zip(params, weights, strict=True):
                if weight.data_ptr() != param.data_ptr():  # it was not contiguous
                    param.copy_(weight)

    def _plan(self, params: Sequence[Tensor], group: ParamGroup, peers: Peers) -> list[Routes]:
        matrices: list[Matrix] = []
        for number, param in enumerate(params):
            if id(param) in self._shards:
                assert len(params) == 1, "DeepSpeed updates one flat tensor of a group at a time"
                for piece in self._shards[id(param)].pieces:
                    matrices += cut(piece.shape, group["layout"], piece.held)
                continue
            as_matrices(param, group["layout"])  # refuses what has lost its shape
            whole = [[Fragment(number, 0, 0, param.numel())]] * peers.size
            shape = tuple(param.shape)
            matrices += cut(shape, group["layout"], whole, replicated=peers.size > 1)
        per_element = scratch_bytes(peers.iteration_dtype(group["ns_dtype"]))
        capacity = int(self.config.bucket_cap_mb * 2**20) // per_element
        buckets = plan_buckets(matrices, peers.size, capacity)
        return [Routes(bucket, peers.rank, peers.size) for bucket in buckets]

    def _apply_edits(self, group: ParamGroup) -> None:
        for param in group["params"]:
            if id(param) in self._shards:
                assert self._peers is not None
                self._edits.apply_to_flat(self._shards[id(param)], self._peers.rank)
            elif param.grad is not None:
                self._edits.apply(param)

    def _adamw_step(self, group: ParamGroup) -> None:
        counts: StepCounts = {}
        entries = [
            adamw_entry(param, self.state[param], group, counts)
            for param in group["params"]
            if param.grad is not None
        ]
        adamw_update_(
            entries,
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
