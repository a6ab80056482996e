"""What MuonGrokfast keeps: the hyperparameters of a group, completed from its configuration, and
the buffers of a parameter (the class's docstring has them), taken up for a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from distforge.errors import InputError, require_choice
from distforge.optim.adamw import AdamWEntry
from distforge.optim.config import Algorithm, MuonGrokfastConfig
from distforge.optim.hyperparameters import readable
from distforge.optim.layout import Layout, as_matrices, matrix_shape, require_layout, whole_shape
from distforge.optim.muon_step import Shard
from distforge.optim.placement import (
    local,
    local_gradient,
    mesh_of,
    placed_as,
    require_understood,
)
from distforge.optim.precision import wide_dtype, widened

State = dict[str, Any]


@dataclass
class StepCounts:
    """Numbers of updates in a step: one tensor for each, and which tensors it takes the place of.

    Reading a tensor takes longer than looking it up, and most parameters share theirs.
    """

    after: dict[float, Tensor] = field(default_factory=dict)
    known: dict[int, tuple[float, Tensor]] = field(default_factory=dict)

    def one_more(self, count: Tensor | None) -> tuple[float, Tensor]:
        """The number after ``count`` (None: the first one), and its tensor."""
        if count is not None and id(count) in self.known:
            number = self.known[id(count)][0]
        else:
            number = 1.0 if count is None else float(count) + 1
            if count is not None:
                self.known[id(count)] = number, count  # which keeps the id in use
        if number not in self.after:
            # Not on torch's default device, which may be a GPU: it is read every step.
            self.after[number] = torch.tensor(number, dtype=torch.float32, device="cpu")
        return number, self.after[number]


def complete_group(
    given: dict[str, Any], config: MuonGrokfastConfig, taken: Set[int], number: int
) -> dict[str, Any]:
    """A copy of ``given`` in which what it does not set comes from ``config``.

    Args:
        given: with "params" (parameters, or pairs with their names) and "algorithm".
        taken: the ids of parameters that are in other groups. number: of the group.

    Raises:
        InputError: an unknown algorithm or layout, a negative learning rate, a parameter that is
            taken or listed twice, or for Muon one that is not a matrix.
    """
    algorithm: Any = given.get("algorithm")
    require_choice("algorithm of a parameter group", algorithm, get_args(Algorithm))
    group = {**default_hyperparameters(algorithm, config), **given}
    readable(group, number)
    if algorithm == "muon":
        require_layout(group["layout"])
    params = group["params"]
    group["params"] = [params] if isinstance(params, Tensor) else list(params)
    seen = set(taken)
    for index, item in enumerate(group["params"]):
        name, param = item if isinstance(item, tuple) else (f"number {index}", item)
        if id(param) in seen:
            raise InputError(
                f"parameter {name} of shape {tuple(param.shape)} is in the optimizer twice: "
                "list each parameter in one group, once."
            )
        seen.add(id(param))
        require_understood(name, param)
        if algorithm == "muon":
            _require_whole(name, param, group["layout"])
    return group


def _require_whole(name: str, param: Tensor, layout: Layout) -> None:
    shape = whole_shape(param)
    as_matrices(torch.empty(shape, device="meta"), layout, f"parameter {name}")
    if getattr(param, "tensor_model_parallel", False):
        raise InputError(
            f"parameter {name} of shape {shape} is one rank's slice of a matrix "
            "(tensor_model_parallel): use tensor parallelism with DTensor, which knows the whole."
        )


def default_hyperparameters(algorithm: Algorithm, config: MuonGrokfastConfig) -> dict[str, Any]:
    """What a group has that sets nothing."""
    return _muon_defaults(config) if algorithm == "muon" else _adamw_defaults(config)


def _muon_defaults(config: MuonGrokfastConfig) -> dict[str, Any]:
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
        "cautious_weight_decay": config.cautious_weight_decay,
        "stochastic_rounding": config.stochastic_rounding,
        "neuron_beta": config.neuron_beta,
        "layout": layout,
        "transposed": False,
    }


def _adamw_defaults(config: MuonGrokfastConfig) -> dict[str, Any]:
    return {
        "lr": config.adamw_lr,
        "weight_decay": config.weight_decay,
        "betas": config.adamw_betas,
        "eps": config.adamw_eps,
        "grokfast_alpha": config.grokfast_alpha,
        "grokfast_lambda": config.grokfast_lambda if config.grokfast_on_adamw else 0.0,
        "cautious_weight_decay": config.cautious_weight_decay,
        "stochastic_rounding": config.stochastic_rounding,
    }


class Held(NamedTuple):
    """What this rank holds of a parameter that is updated now.

    param: as the optimizer was given it. weight, grad: its own part, all of it where it is plain.
    noise: what stochastic rounding depends on beside the step; None rounds to nearest.
    """

    param: Tensor
    weight: Tensor
    grad: Tensor
    noise: tuple[int, ...] | None

    def contiguous(self) -> Held:
        """With a weight and gradient that can be cut into runs; copies where they were not."""
        if self.weight.is_contiguous() and self.grad.is_contiguous():
            return self
        return self._replace(weight=self.weight.contiguous(), grad=self.grad.contiguous())

    def scratch_bytes(self, group: dict[str, Any]) -> int:
        """What AdamW needs beside weight, gradient and state."""
        narrow = self.weight.dtype != wide_dtype(self.weight)
        copies = 2 * narrow + (group["grokfast_lambda"] != 0) + group["cautious_weight_decay"]
        return int(copies) * self.weight.numel() * wide_dtype(self.weight).itemsize


def held(param: Tensor, group: dict[str, Any], noise: tuple[int, ...]) -> Held:
    """A parameter with a gradient; ``noise`` is for those that stochastic rounding is for."""
    weight = param if mesh_of(param) is None else local(param)
    narrow = weight.dtype in (torch.bfloat16, torch.float16) and group["stochastic_rounding"]
    return Held(param, weight, local_gradient(param), noise if narrow else None)


def muon_shard(mine: Held, state: State, group: dict[str, Any], counts: StepCounts) -> Shard:
    """A Muon parameter, or flat shard, as `muon_update` takes it; its state begins here.

    Args:
        mine: contiguous.
        state: the optimizer's for the parameter.
        group: the hyperparameters.
        counts: the same for all parameters of a step.
    """
    step = _count_step(state, counts)
    momentum, ema, neurons = begun(mine, state, group)
    return Shard(mine.weight, mine.grad, momentum, ema, _noise_at(mine, step), neurons)


def begun(
    mine: Held, state: State, group: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Momentum, Grokfast's average and NorMuon's moments of a Muon parameter, made where they are
    missing and dropped where they are off."""
    momentum = _buffer(state, "exp_avg", mine)
    ema = _ema(state, "exp_avg_sq", mine, group)
    return momentum, ema, _neurons(state, mine, group)


def adamw_entry(mine: Held, state: State, group: dict[str, Any], counts: StepCounts) -> AdamWEntry:
    """An AdamW parameter as `adamw_update_` takes it, filtered where that is asked for.

    The arguments are those of `muon_shard`; its state begins here.
    """
    grad = widened(mine.grad)
    step = _count_step(state, counts)
    moments = [_buffer(state, name, mine) for name in ("exp_avg", "exp_avg_sq")]
    ema = _ema(state, "grokfast_ema", mine, group)
    if ema is not None:
        ema.lerp_(grad, 1 - group["grokfast_alpha"])
        grad = grad.add(ema, alpha=group["grokfast_lambda"])
    return AdamWEntry(mine.weight, grad, moments[0], moments[1], step, _noise_at(mine, step))


def adamw_portions(
    parts: Iterable[Held], states: Mapping[Tensor, State], group: dict[str, Any], scratch: int
) -> Iterator[list[AdamWEntry]]:
    """Entries whose scratch together is at most ``scratch`` bytes, or one: float32 copies of what
    is narrower, and filtered gradients."""
    counts = StepCounts()
    portion: list[AdamWEntry] = []
    taken = 0
    for part in parts:
        needed = part.scratch_bytes(group)
        if portion and taken + needed > scratch:
            yield portion
            portion, taken = [], 0
        portion.append(adamw_entry(part, states[part.param], group, counts))
        taken += needed
    if portion:
        yield portion


def _noise_at(mine: Held, step: int) -> tuple[int, ...] | None:
    return None if mine.noise is None else (*mine.noise, step)


def _count_step(state: State, counts: StepCounts) -> int:
    """One more update. States with the same number share its tensor."""
    number, state["step"] = counts.one_more(state.get("step"))
    return int(number)


def _buffer(state: State, name: str, mine: Held) -> Tensor:
    if name not in state:
        zeros = torch.zeros_like(mine.grad, dtype=wide_dtype(mine.grad))
        state[name] = placed_as(zeros, mine.param)
    return local(state[name])


def _neurons(state: State, mine: Held, group: dict[str, Any]) -> Tensor | None:
    """NorMuon's second moment of each neuron, an output of the matrix."""
    if group["neuron_beta"] == 0:
        state.pop("neuron_moment", None)
        return None
    if "neuron_moment" not in state:
        _, m, n = matrix_shape(tuple(mine.param.shape), group["layout"])
        inputs = m if group["transposed"] else n
        state["neuron_moment"] = mine.weight.new_zeros(
            mine.weight.numel() // inputs, dtype=wide_dtype(mine.weight)
        )
    moment: Tensor = state["neuron_moment"]
    return moment


def _ema(state: State, name: str, mine: Held, group: dict[str, Any]) -> Tensor | None:
    """Grokfast's average, begun with the first gradient; None, and no buffer, without a filter."""
    if group["grokfast_lambda"] == 0:
        state.pop(name, None)
        return None
    if name not in state:
        first = mine.grad.to(wide_dtype(mine.grad), copy=True)
        state[name] = placed_as(first, mine.param)
    return local(state[name])
