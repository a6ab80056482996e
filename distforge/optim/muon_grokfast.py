"""MuonGrokfast: Grokfast's gradient filter, Muon's orthogonalised momentum, AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from distforge.errors import InputError
from distforge.ops import grokfast_momentum_, newton_schulz
from distforge.optim.adamw import adamw_update_
from distforge.optim.batching import MAX_STACKED_ELEMENTS, Iteration, bounded, update_scale
from distforge.optim.config import (
    Algorithm,
    MuonGrokfastConfig,
    require_choice,
    require_range,
)
from distforge.optim.param_groups import (
    Layout,
    NamedParameters,
    as_matrices,
    from_matrices,
    split_parameters,
)

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

    Steps 1 and 2 are one elementwise pass per tensor and step 3 one batch per shape
    (distforge.ops), so each matrix is orthogonalised exactly once per step. Embeddings, head,
    norms and biases get AdamW; distforge.optim.param_groups says which is which.

    State per parameter, float32 even where parameter and gradient are 16 bit (a bf16 average
    stalls as soon as g is close to h):

        exp_avg       momentum m, or Adam's first moment
        exp_avg_sq    Grokfast's h (absent when lambda = 0), or Adam's second moment
        grokfast_ema  Grokfast's h of an AdamW parameter, with ``grokfast_on_adamw``
        step          number of updates; replaced, never incremented in place, because loaded
                      checkpoints may share one tensor among parameters

    The first, second and last names are those that DeepSpeed's universal checkpoints look for.
    All hyperparameters live in ``param_groups``; ``param_groups[i]["lr"]`` drives schedulers and
    ``["initial_lr"]`` keeps where it started. QK-Clip is applied after the step by its owner
    (distforge.optim.qk_clip), because it needs the attention logits of the forward pass.

    A gradient that is infinite or not a number raises FloatingPointError before any state or
    weight has changed, so a caller may drop the batch and go on. Parameters without a gradient
    are skipped.

    DeepSpeed orthogonalises on its own when a class name contains "muon" and parameters carry
    an attribute ``use_muon``; this class never sets it. ``zero_stages`` lists the ZeRO stages
    under which the step is right: whole matrices are needed, hence stage 0 only.

    Args:
        named_parameters: what ``model.named_parameters()`` gives, or ready parameter groups, each
            with "params" and "algorithm" ("muon" or "adamw"), which may set any hyperparameter
            of its own, and for Muon "layout" and "transposed" (param_groups.Role).
        config: hyperparameters of all groups that do not set their own.

    Raises:
        InputError: no trainable parameter, a parameter in two groups, an unknown algorithm, a
            Muon parameter that is not a matrix, or a sparse gradient.
    """

    zero_stages: ClassVar[tuple[int, ...]] = (0,)

    def __init__(
        self, named_parameters: NamedParameters | Iterable[ParamGroup], config: MuonGrokfastConfig
    ) -> None:
        self.config = config
        items: list[Any] = list(named_parameters)
        ready = bool(items) and all(isinstance(item, dict) for item in items)
        super().__init__(items if ready else split_parameters(items, config), defaults={})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "config": self.config}

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Adds a group with "params" and "algorithm"; missing hyperparameters come from config.

        Raises InputError as the class does.
        """
        algorithm = param_group.get("algorithm")
        require_choice("algorithm of a parameter group", algorithm, get_args(Algorithm))
        defaults = _muon_defaults if algorithm == "muon" else _adamw_defaults
        group = {**defaults(self.config), **param_group}
        require_range("lr of a parameter group", group["lr"], 0.0)
        if algorithm == "muon":
            require_choice("layout of a parameter group", group["layout"], get_args(Layout))
        group.setdefault("initial_lr", group["lr"])
        group["params"] = _listed(group["params"])
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        for index, item in enumerate(group["params"]):
            name, param = item if isinstance(item, tuple) else (f"number {index}", item)
            if id(param) in taken:
                raise InputError(
                    f"parameter {name} of shape {tuple(param.shape)} is in the optimizer twice: "
                    "list each parameter in one group, once."
                )
            taken.add(id(param))
            if algorithm == "muon":
                as_matrices(param.detach(), group["layout"])
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss, if any.

        Raises FloatingPointError for a non-finite gradient, with nothing changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for iteration, members in self._muon_batches():
            self._muon_update(iteration, members)
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                for param in group["params"]:
                    if param.grad is not None:
                        self._adamw_update(param, group)
        return loss

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

    def _check_gradients(self) -> None:
        named = [
            (group.get("param_names", range(len(group["params"])))[index], param)
            for group in self.param_groups
            for index, param in enumerate(group["params"])
            if param.grad is not None
        ]
        for name, param in named:
            if param.grad.is_sparse:
                raise InputError(
                    f"parameter {name} has a sparse gradient: make its embedding with sparse=False."
                )
        grads = [param.grad for _, param in named]
        # The largest magnitude, not the 2-norm: a legitimate gradient of 1e30 has no finite square.
        if not grads or torch.nn.utils.get_total_norm(grads, math.inf).isfinite():
            return
        name = next(name for name, param in named if not param.grad.isfinite().all())
        raise FloatingPointError(
            f"the gradient of parameter {name} is not finite; no weight has changed: "
            "drop this batch, or lower the learning rate or the loss scale."
        )

    def _muon_batches(self) -> Iterator[tuple[Iteration, list[tuple[Tensor, ParamGroup]]]]:
        batches: dict[Iteration, list[tuple[Tensor, ParamGroup]]] = defaultdict(list)
        for group in self.param_groups:
            if group["algorithm"] != "muon":
                continue
            for param in group["params"]:
                if param.grad is not None:
                    batches[Iteration.of(param, group)].append((param, group))
        for iteration, members in batches.items():
            for chunk in bounded(members, MAX_STACKED_ELEMENTS):
                yield iteration, chunk

    def _muon_update(self, iteration: Iteration, members: list[tuple[Tensor, ParamGroup]]) -> None:
        stacks = [
            iteration.cast(as_matrices(self._filtered_momentum(param, group), group["layout"]))
            for param, group in members
        ]
        orthogonal = newton_schulz(torch.cat(stacks), iteration.coefficients, iteration.steps)
        pieces = orthogonal.split([len(stack) for stack in stacks])
        for (param, group), piece in zip(members, pieces, strict=True):
            update = from_matrices(piece, param.shape, group["layout"])
            scale = update_scale(group["scale"], iteration, transposed=group["transposed"])
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-group["lr"] * scale)

    def _filtered_momentum(self, param: Tensor, group: ParamGroup) -> Tensor:
        grad, state = _wide_gradient(param).contiguous(), self.state[param]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(grad)
        state["step"] = state["step"] + 1
        return grokfast_momentum_(
            grad,
            _ema_slot(state, "exp_avg_sq", grad, group),
            state["exp_avg"],
            alpha=group["grokfast_alpha"],
            lamb=group["grokfast_lambda"],
            beta=group["momentum"],
            nesterov=group["nesterov"],
        )

    def _adamw_update(self, param: Tensor, group: ParamGroup) -> None:
        grad, state = _wide_gradient(param), self.state[param]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(grad)
            state["exp_avg_sq"] = torch.zeros_like(grad)
        state["step"] = state["step"] + 1
        ema = _ema_slot(state, "grokfast_ema", grad, group)
        if ema is not None:
            ema.lerp_(grad, 1 - group["grokfast_alpha"])
            grad = grad.add(ema, alpha=group["grokfast_lambda"])
        adamw_update_(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            int(state["step"].item()),
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def _muon_defaults(config: MuonGrokfastConfig) -> ParamGroup:
    layout: Layout = "matrix"
    return {
        "lr": config.muon_lr,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "ns_steps": config.ns_steps,
        "ns_coefficients": config.ns_coefficients,
        "ns_dtype": config.ns_dtype,
        "scale": config.scale,
        "grokfast_alpha": config.grokfast_alpha,
        "grokfast_lambda": config.grokfast_lambda,
        "layout": layout,
        "transposed": False,
    }


def _adamw_defaults(config: MuonGrokfastConfig) -> ParamGroup:
    return {
        "lr": config.adamw_lr,
        "weight_decay": config.weight_decay,
        "betas": config.adamw_betas,
        "eps": config.adamw_eps,
        "grokfast_alpha": config.grokfast_alpha,
        "grokfast_lambda": config.grokfast_lambda if config.grokfast_on_adamw else 0.0,
    }


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _wide_gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad.to(torch.promote_types(param.grad.dtype, torch.float32))


def _ema_slot(state: dict[str, Any], name: str, grad: Tensor, group: ParamGroup) -> Tensor | None:
    if group["grokfast_lambda"] == 0:
        state.pop(name, None)
        return None
    if name not in state:
        state[name] = grad.clone()
    ema: Tensor = state[name]
    return ema
