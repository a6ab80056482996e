"""Largest attention logits of a transformers model, measured on sampled steps, for QK-Clip.

Fused attention (SDPA, flash) does not show its logits. On a step to be sampled, ``AttentionLogits``
switches the model to an attention function that measures them and then calls the model's own
function; on every other step the model runs as if this module did not exist.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distforge.errors import InputError
from distforge.models.attention_heads import InPlace, find_attention
from distforge.optim.qk_clip import clip_factors, count_clipped

_LOG = logging.getLogger(__name__)
# Elements of float32 logits held at once while measuring (64 MiB).
_LOGITS_BUDGET = 1 << 24
_PREFIX = "distforge_logits_"
_BASES = ("eager", "sdpa")

# Running maximum (H,) of each attention module that is being measured. Weak: a recorder that was
# dropped while enabled keeps neither the model nor the measurement alive.
_RUNNING_MAX: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


class AttentionLogits:
    """Measures S_h = max(q . k) * scale of every head, and clips the heads that are too large.

        recorder = AttentionLogits(model)
        recorder.enable()                    # on a sampled step, before the forward pass
        ...                                  # forward and backward of all micro-batches
        recorder.disable()
        optimizer.step()
        clipped = recorder.apply_clip(30.0)

    attention_heads.find_attention says which models are understood, what is scaled where queries
    and keys are normalised, and which errors are raised. A model whose implementation is neither
    "eager" nor "sdpa" runs a sampled step with "sdpa": the same attention, summed in another order.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = find_attention(model)
        configs: list[Any] = [layer.module.config for layer in self._layers]
        self._configs = {id(config): config for config in configs}
        self._original: dict[int, str | None] = {}

    def enable(self) -> None:
        """Starts a measurement: clears the running maxima and switches the attention function."""
        for layer in self._layers:
            _RUNNING_MAX[layer.module] = torch.full((layer.num_heads,), -torch.inf)
        for key, config in self._configs.items():
            current = config._attn_implementation
            if key not in self._original:
                self._original[key] = current
                config._attn_implementation = _PREFIX + _base_of(current)

    def disable(self) -> None:
        """Gives the model its own attention function back; the measurement stays."""
        for key, implementation in self._original.items():
            self._configs[key]._attn_implementation = implementation
        self._original.clear()

    def max_logits(self) -> dict[str, Tensor]:
        """Module name -> (H,) float32 running maximum since enable(); -inf where nothing ran."""
        nothing = {layer.name: torch.full((layer.num_heads,), -torch.inf) for layer in self._layers}
        return {
            layer.name: _RUNNING_MAX.get(layer.module, nothing[layer.name])
            for layer in self._layers
        }

    @torch.no_grad()
    def apply_clip(
        self,
        threshold: float,
        all_reduce_max: Callable[[Tensor], object] | None = None,
        edit: Callable[[nn.Parameter, InPlace], object] | None = None,
    ) -> int:
        """Scales the heads whose logits exceeded ``threshold``; returns how many there were.

        Args:
            threshold: tau > 0, in units of scaled logits.
            all_reduce_max: reduces one float32 tensor in place to the maximum over data-parallel
                ranks, so that all ranks clip alike.
            edit: ``edit(parameter, in_place)`` applies ``in_place`` to every copy of the weight
                that training keeps (float32 master and low-precision copy). By default the
                parameter itself is all there is.

        Ends and uses up the measurement. Raises InputError when enable() was followed by none.
        """
        self.disable()
        device = next(self._model.parameters()).device
        flat = torch.cat([values.to(device) for values in self.max_logits().values()])
        if all_reduce_max is not None:
            all_reduce_max(flat)
        flat = flat.cpu()
        if (flat == -torch.inf).all():
            raise InputError(
                "no attention logit was measured: call enable() before the forward pass, and use "
                "a model that calls transformers' AttentionInterface."
            )
        for layer in self._layers:
            _RUNNING_MAX.pop(layer.module, None)
        clipped = 0
        pieces = flat.split([layer.num_heads for layer in self._layers])
        for layer, logits in zip(self._layers, pieces, strict=True):
            if logits.isnan().any() or (logits == torch.inf).any():
                _LOG.warning("%s: attention logits are not finite, not clipped", layer.name)
            query, key = clip_factors(logits, threshold, layer.num_kv_heads)
            over = count_clipped(logits, threshold)
            clipped += over
            for parameter, in_place in layer.edits(query, key) if over else ():
                if edit is None:
                    in_place(parameter)
                else:
                    edit(parameter, in_place)
        return clipped


def _base_of(implementation: str | None) -> str:
    if implementation is None or implementation in _BASES:
        return implementation or "eager"
    _LOG.info("attention logits are measured with sdpa instead of %s", implementation)
    return "sdpa"


def _measuring(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if module in _RUNNING_MAX:
            causal = kwargs.get("is_causal")
            causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
            new = head_maxima(
                query,
                key,
                kwargs.get("scaling"),
                attention_mask,
                # Eager attention without a mask attends everywhere; SDPA takes the flag.
                mask_future=causal and base == "sdpa" and query.shape[2] > 1,
                self_attention=causal and query.shape[2] == key.shape[2],
            )
            _RUNNING_MAX[module] = torch.maximum(_RUNNING_MAX[module].to(new.device), new)
        if base == "eager":
            own = sys.modules[type(module).__module__].eager_attention_forward
        else:
            own = ALL_ATTENTION_FUNCTIONS[base]
        output: tuple[Tensor, Tensor | None] = own(
            module, query, key, value, attention_mask, **kwargs
        )
        return output

    return attention


@torch.no_grad()
def head_maxima(
    query: Tensor,
    key: Tensor,
    scaling: float | None,
    mask: Tensor | None,
    *,
    mask_future: bool = False,
    self_attention: bool = False,
) -> Tensor:
    """(H,) float32: largest q . k * scaling of each head over batch and valid pairs of positions.

    Args:
        query: (B, H, L_q, d); key: (B, H_kv, L_k, d), H_kv dividing H.
        scaling: of the logits; None is 1 / sqrt(d).
        mask: (B or 1, 1 or H, L_q, L_k), boolean with True = may attend, or additive with the
            dtype's minimum (or -inf) where it may not; None means all pairs.
        mask_future: with no mask, use only keys at or before the query's position.
        self_attention: queries and keys are the same positions, so a query that may not attend to
            itself is padding, and its logits do not count.

    The logits are computed in float32, in blocks of queries of at most 64 MiB. A head with no
    valid pair gives -inf.
    """
    batch, heads, length, width = query.shape
    kv_heads, kv_length = key.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    valid = _valid_pairs(mask, length, kv_length, query.device, mask_future, self_attention)
    maxima = torch.full((heads,), -torch.inf, device=query.device)
    block = max(1, _LOGITS_BUDGET // (batch * heads * kv_length))
    # Autocast would round the logits to 16 bit again.
    with torch.autocast(query.device.type, enabled=False):
        keys = key.float().transpose(-1, -2).unsqueeze(2)
        for start in range(0, length, block):
            rows = query[:, :, start : start + block].float()
            grouped = rows.unflatten(1, (kv_heads, heads // kv_heads))
            logits = (grouped @ keys).flatten(1, 2) * scale
            if valid is not None:
                logits = logits.masked_fill(~valid[..., start : start + block, :], -torch.inf)
            maxima = torch.maximum(maxima, logits.amax(dim=(0, 2, 3)))
    return maxima


def _valid_pairs(
    mask: Tensor | None,
    length: int,
    kv_length: int,
    device: torch.device,
    mask_future: bool,
    self_attention: bool,
) -> Tensor | None:
    if mask is None:
        if not mask_future:
            return None
        return torch.ones(length, kv_length, dtype=torch.bool, device=device).tril()[None, None]
    valid = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if self_attention:
        own = valid.diagonal(dim1=-2, dim2=-1)
        valid = valid & own[..., None]
    return valid


for _base in _BASES:
    AttentionInterface.register(_PREFIX + _base, _measuring(_base))
    AttentionMaskInterface.register(_PREFIX + _base, ALL_MASK_ATTENTION_FUNCTIONS[_base])
