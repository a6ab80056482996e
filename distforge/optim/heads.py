"""The heads of query, key and value projections, for those who orthogonalise each by itself."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from distforge.errors import InputError
from distforge.optim.layout import Layout, whole_shape

# Separate, or fused in any order: equal or grouped, one after another or interleaved by head, each
# head has its own run of rows.
_PROJECTION = re.compile(
    r"([qkv]|query|key|value)(_proj|_lin)?|c_attn|qkv_proj|Wqkv|qkv|query_key_value"
)


def head_layouts(source: Any) -> dict[int, Layout]:
    """Layouts that cut query, key and value projections into heads, by id of the parameter.

    Args:
        source: a model of transformers, whose configuration tells the size of a head, or one with
            torch's MultiheadAttention.

    Raises InputError where neither is to be found: sizes alone do not tell heads.
    """
    layouts: dict[int, Layout] = {}
    modules = dict(source.named_modules()) if isinstance(source, nn.Module) else {}
    for module in modules.values():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            layouts[id(module.in_proj_weight)] = f"rows:{module.head_dim}"
    size = _head_size(modules)
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if size and weight is not None and _PROJECTION.fullmatch(name.rpartition(".")[2]):
            shape, stored = whole_shape(weight), type(module).__name__ == "Conv1D"
            if len(shape) == 2 and shape[stored] % size == 0:
                layouts[id(weight)] = f"{'columns' if stored else 'rows'}:{size}"
    if not layouts:
        raise InputError(
            f"split_heads found no query, key or value projection of known heads in a "
            f"{type(source).__name__}: give a model of transformers or with "
            "torch.nn.MultiheadAttention, or groups with the layout rows:N."
        )
    return layouts


def _head_size(modules: dict[str, nn.Module]) -> int:
    for module in modules.values():
        config: Any = getattr(module, "config", None)
        config = getattr(config, "text_config", None) or config
        heads = getattr(config, "num_attention_heads", None)
        if heads:
            own = getattr(config, "head_dim", None)
            return int(own or config.hidden_size // heads)
    return 0
