"""What MuonGrokfast's state dict holds beside torch's, and how it is loaded without rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distforge.optim.hyperparameters import without_functions
from distforge.optim.layout import FlatShard
from distforge.optim.refusals import require_same_algorithms


def saved(
    state_dict: dict[str, Any], params: Sequence[Tensor], shards: Mapping[int, FlatShard]
) -> dict[str, Any]:
    """torch's state dict without functions, and with both buffers of every shard.

    Args:
        state_dict: changed, and returned.
        params: in the order of its groups.
        shards: what flat tensors stand for, by id.
    """
    groups = [without_functions(group) for group in state_dict["param_groups"]]
    state_dict["param_groups"] = groups
    packed = [key for group in groups for key in group["params"]]
    for key, param in zip(packed, params, strict=True):
        state = state_dict["state"].get(key, {})
        if id(param) in shards and "exp_avg" in state and "exp_avg_sq" not in state:
            stand_in = state["exp_avg"].new_zeros(()).expand(state["exp_avg"].shape)
            state_dict["state"][key] = {**state, "exp_avg_sq": stand_in}
    return state_dict


@contextmanager
def restored_bit_by_bit(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What torch loads meanwhile keeps the dtypes that it was saved in.

    torch.optim casts buffers to the parameter's dtype: float32 momentum of a bf16 parameter would
    lose its low half.
    """
    loaded: list[dict[str, Any]] = []
    hooks = [
        optimizer.register_load_state_dict_pre_hook(require_same_algorithms),
        optimizer.register_load_state_dict_pre_hook(lambda _, given: loaded.append(given)),
        optimizer.register_load_state_dict_post_hook(
            lambda mine: _restore(mine, loaded[0]), prepend=True
        ),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _restore(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for key, param in zip(keys, params, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            if name != "step":
                optimizer.state[param][name] = value.detach().to(param.device, copy=True)
