"""Where the query and key projections of an attention module are, and how to scale one head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distforge.errors import InputError
from distforge.optim.qk_clip import scale_heads_

InPlace = Callable[[Tensor], None]
Edit = tuple[nn.Parameter, InPlace]


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention module.

    name, module: as in ``model.named_modules()``.
    num_heads, num_kv_heads: query heads, and the key heads that they share.
    edits: from factors (num_heads,) and (num_kv_heads,), the in-place change of each parameter
        that multiplies the logits of head h by query[h] * key[group of h].
    """

    name: str
    module: nn.Module
    num_heads: int
    num_kv_heads: int
    edits: Callable[[Tensor, Tensor], list[Edit]]


def find_attention(model: nn.Module) -> list[AttentionLayer]:
    """The attention modules of a transformers model, at least one.

    Understood are separate projections ``q_proj`` and ``k_proj`` (Llama, Mistral, Qwen, Gemma,
    OLMo) with or without biases, and the fused ones of GPT-2 (``c_attn``), Phi-3 (``qkv_proj``) and
    GPT-NeoX (``query_key_value``). Where queries and keys are
    normalised after the projection, the gains of the norms are scaled, since scaling the
    projections would have no effect; a gain that all heads share is scaled by what the largest
    head needs, which takes its siblings along.

    Raises InputError when there is no such module, or when a projection cannot be scaled in place
    (an adapter, a quantised weight, heads that are not consecutive blocks of rows).
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "c_attn", None), nn.Module):
            layers.append(_fused(name, module))
        elif type(module).__name__ in _FUSED_LINEAR:
            layers.append(_FUSED_LINEAR[type(module).__name__](name, module))
        elif isinstance(getattr(module, "q_proj", None), nn.Module):
            layers.append(_separate(name, module))
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no attention whose queries and keys are understood: "
            "set qk_clip_threshold = 0 for this model."
        )
    return layers


def _separate(name: str, module: Any) -> AttentionLayer:
    q_proj, k_proj = _plain_linear(name, module, "q_proj"), _plain_linear(name, module, "k_proj")
    head_dim = getattr(module, "head_dim", None)
    num_heads = getattr(module.config, "num_attention_heads", None)
    whole_heads = (
        isinstance(head_dim, int)
        and isinstance(num_heads, int)
        and q_proj.weight.shape[0] == num_heads * head_dim
        and k_proj.weight.shape[0] % head_dim == 0
    )
    if not whole_heads:
        raise InputError(
            f"{name} has query weights of shape {tuple(q_proj.weight.shape)} for {num_heads} heads "
            f"of width {head_dim}: QK-Clip needs whole heads one after another; set "
            "qk_clip_threshold = 0 for this model."
        )
    assert isinstance(head_dim, int)
    assert isinstance(num_heads, int)
    norms = _norms(name, module)

    def edits(query: Tensor, key: Tensor) -> list[Edit]:
        if norms is None:
            return _linear_edits(q_proj, query) + _linear_edits(k_proj, key)
        tightest = (query.unflatten(0, (len(key), -1)) * key[:, None]).amin().sqrt()[None]
        changes: list[Edit] = []
        for norm, per_head in zip(norms, (query, key), strict=True):
            changes += norm.edits(tightest if norm.width == head_dim else per_head)
        return changes

    return AttentionLayer(name, module, num_heads, k_proj.weight.shape[0] // head_dim, edits)


def _plain_linear(name: str, module: nn.Module, projection: str) -> nn.Linear:
    linear = getattr(module, projection, None)
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"{name}.{projection} is a {type(linear).__name__}, which QK-Clip cannot scale in "
            "place: set qk_clip_threshold = 0 for adapters and other wrapped projections."
        )
    return linear


def _linear_edits(linear: nn.Linear, factors: Tensor) -> list[Edit]:
    def scale(rows: Tensor) -> None:
        scale_heads_(rows, factors)

    return [(parameter, scale) for parameter in linear.parameters(recurse=False)]


def _fused(name: str, module: Any) -> AttentionLayer:
    c_attn, num_heads = module.c_attn, getattr(module, "num_heads", None)
    weight = getattr(c_attn, "weight", None)
    is_gpt2 = (
        type(c_attn).__name__ == "Conv1D"
        and isinstance(weight, nn.Parameter)
        and weight.shape[1] == 3 * weight.shape[0]
        and isinstance(num_heads, int)
    )
    if not is_gpt2:
        raise InputError(
            f"{name}.c_attn is a {type(c_attn).__name__} and not GPT-2's fused self-attention: "
            "set qk_clip_threshold = 0 for this model."
        )
    assert isinstance(num_heads, int)
    assert isinstance(weight, nn.Parameter)
    width = weight.shape[0]

    def edits(query: Tensor, key: Tensor) -> list[Edit]:
        def scale_both(tensor: Tensor) -> None:
            rows = tensor.T if tensor.ndim == 2 else tensor  # Conv1D stores (in, out)
            scale_heads_(rows[:width], query)
            scale_heads_(rows[width : 2 * width], key)

        return [(weight, scale_both), (c_attn.bias, scale_both)]

    return AttentionLayer(name, module, num_heads, num_heads, edits)


def _stacked(name: str, module: Any) -> AttentionLayer:
    """Phi-3: the rows of all queries, of all keys, of all values."""
    linear = _plain_linear(name, module, "qkv_proj")
    width, kv_heads = module.head_dim, module.num_key_value_heads
    heads = linear.weight.shape[0] // width - 2 * kv_heads

    def edits(query: Tensor, key: Tensor) -> list[Edit]:
        factors = torch.cat([query, key, torch.ones_like(key)])
        return _linear_edits(linear, factors)

    return AttentionLayer(name, module, heads, kv_heads, edits)


def _interleaved(name: str, module: Any) -> AttentionLayer:
    """GPT-NeoX: the rows of a head's query, key and value, then those of the next head."""
    linear = _plain_linear(name, module, "query_key_value")
    heads = linear.weight.shape[0] // (3 * module.head_size)

    def edits(query: Tensor, key: Tensor) -> list[Edit]:
        factors = torch.stack([query, key, torch.ones_like(key)], dim=1).flatten()
        return _linear_edits(linear, factors)

    return AttentionLayer(name, module, heads, heads, edits)


# By class: other models have projections of these names in other orders.
_FUSED_LINEAR = {"Phi3Attention": _stacked, "GPTNeoXAttention": _interleaved}


@dataclass(frozen=True)
class _Norm:
    """A norm over heads whose output is (offset + weight) * normalised, plus a bias it may have."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    offset: int

    @property
    def width(self) -> int:
        return self.weight.numel()

    def edits(self, factors: Tensor) -> list[Edit]:
        def scale_gain(gain: Tensor) -> None:
            rows = gain.view(len(factors), -1)
            by = factors.to(device=gain.device, dtype=gain.dtype)[:, None]
            # Not add, scale, subtract: that would round the gains of heads whose factor is one.
            rows.mul_(by).add_((by - 1) * self.offset)

        def scale_bias(bias: Tensor) -> None:
            scale_heads_(bias, factors)

        changes: list[Edit] = [(self.weight, scale_gain)]
        return changes if self.bias is None else [*changes, (self.bias, scale_bias)]


def _norms(name: str, module: nn.Module) -> tuple[_Norm, _Norm] | None:
    for query_name, key_name in (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm")):
        query, key = getattr(module, query_name, None), getattr(module, key_name, None)
        if isinstance(query, nn.Module) and isinstance(key, nn.Module):
            return _norm(f"{name}.{query_name}", query), _norm(f"{name}.{key_name}", key)
    if isinstance(getattr(module, "qk_norm", None), nn.Module):
        raise InputError(
            f"{name} normalises queries and keys without a gain, which already bounds the logits: "
            "set qk_clip_threshold = 0 for this model."
        )
    return None


@torch.no_grad()
def _norm(name: str, norm: Any) -> _Norm:
    # Some norms multiply by their weight, others (Gemma) by 1 + weight; trying one out tells.
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(weight, nn.Parameter) and weight.shape[-1] > 1:
        probe = torch.arange(weight.shape[-1], device=weight.device, dtype=torch.float32)
        probe = (probe - probe.mean()) / probe.std(correction=0)
        output = norm(probe.expand(weight.shape).to(weight.dtype)).float()
        output = output if bias is None else output - bias.float()
        for offset in (0, 1):
            if torch.allclose(output, probe * (weight.float() + offset), rtol=1e-2, atol=1e-2):
                return _Norm(weight, bias, offset)
    raise InputError(
        f"{name} of class {type(norm).__name__} has no gain that QK-Clip understands: "
        "set qk_clip_threshold = 0 for this model."
    )
