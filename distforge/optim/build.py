"""From a configuration to an optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from distforge.errors import InputError, require_choice, require_in
from distforge.optim.config import (
    MuonGrokfastConfig,
    require_betas,
)
from distforge.optim.layout import whole_shape
from distforge.optim.muon_grokfast import MuonGrokfast
from distforge.optim.param_groups import split_parameters
from distforge.optim.roles import NamedParameters

OptimizerName = Literal["muon_grokfast", "adamw"]


@dataclass(frozen=True)
class AdamWConfig:
    """torch.optim.AdamW for every parameter.

    lr: learning rate, >= 0.
    betas: decay of the first and second moment, each [0, 1).
    eps: added to the root of the second moment, >= 0.
    weight_decay: decoupled, >= 0, on matrices only; vectors (norms, biases) are not decayed.

    Raises InputError when a value is out of its range.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            require_in("[0, inf)", **{name: getattr(self, name)})
        require_betas("betas", self.betas)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and the configuration of each.

    name: "muon_grokfast" or "adamw", whose section is then read.

    Raises InputError for an unknown name.
    """

    name: OptimizerName = "muon_grokfast"
    muon_grokfast: MuonGrokfastConfig = field(default_factory=MuonGrokfastConfig.baking)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        require_choice("optimizer name", self.name, get_args(OptimizerName))


def build_optimizer(
    source: nn.Module | NamedParameters, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters of ``source``.

    Args:
        source: a model, or (name, parameter) pairs as ``model.named_parameters()`` gives. With a
            model the choice between Muon and AdamW sees module types (see split_parameters).

    Every group has ``initial_lr``, which apply_lr scales. Raises InputError when there is nothing
    to train.
    """
    if config.name == "muon_grokfast":
        groups = split_parameters(source, config.muon_grokfast)
        optimizer = MuonGrokfast(groups, config.muon_grokfast)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer
    return _build_adamw(source, config.adamw)


def _build_adamw(source: nn.Module | NamedParameters, config: AdamWConfig) -> torch.optim.AdamW:
    pairs = source.named_parameters() if isinstance(source, nn.Module) else source
    unique = {id(param): (name, param) for name, param in pairs if param.requires_grad}
    if not unique:
        raise InputError(
            "there is no trainable parameter: give a model with requires_grad parameters."
        )
    matrices = [pair for pair in unique.values() if len(whole_shape(pair[1])) >= 2]
    vectors = [pair for pair in unique.values() if len(whole_shape(pair[1])) < 2]
    groups = [
        {"params": members, "weight_decay": decay, "initial_lr": config.lr}
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if members
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
