"""Attention of many branches that grow from one text, whose keys and values they share.

Branches stand in a grid: a row is a text with P branches of it; a text may have several rows. A
query of a branch sees the text up to the branch's anchor, and the branch itself; never another
branch (the diagonal mask of Quiet-STaR, arXiv 2403.09629, section 4.2). Its logits over the text
and over its own tail go through one softmax. Keys and values take O(L + P T) elements a row and
layer, and the logits are made in blocks of bounded size, so memory is linear in the text, also with
a thought at every position of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from distforge.errors import InputError

_NAME = "distforge_branches"
# Elements of attention logits held at once (16 MiB in float32).
_BLOCK_ELEMENTS = 1 << 22

_ACTIVE: ContextVar[BranchCache] = ContextVar("distforge_branches")


class BranchCache(Cache):
    """Keys and values of the texts of B rows and of the tails of their P branches.

    Args:
        text: the cache of one forward pass over texts, which are padded on the right.
        rows: (B,) int64, which of these is the text of each row.
        anchors: (B, P) int64, the column of the last text token that a branch sees.
        capacity: most tokens that a branch will hold.

    ``extend`` is entered around each forward pass, whose input has s tokens for each branch, laid
    out as (B, s * P) with the branches of one token side by side.
    """

    def __init__(self, text: Cache, rows: Tensor, anchors: Tensor, capacity: int) -> None:
        length = text.layers[0].keys.shape[2]
        layers = [
            _BranchLayer.empty(layer.keys, layer.values, rows, anchors.shape[1], capacity)
            for layer in text.layers
        ]
        super().__init__(layers=layers)
        columns = torch.arange(length, device=anchors.device)
        self._sees_text = columns <= anchors[..., None]  # (B, P, L)
        self._filled = anchors.new_zeros((*anchors.shape, capacity), dtype=torch.bool)
        self._start = self._new = 0
        # What a forward pass in one block hides, in all layers alike.
        self._hidden: Tensor | None = None
        self._pending: _BranchLayer | None = None
        self._attended = 0

    @contextmanager
    def extend(self, lm: PreTrainedModel, valid: Tensor) -> Iterator[None]:
        """Inside, one forward pass of ``lm`` adds tokens to the branches.

        Args:
            valid: (B, s, P) boolean, false for a token that nothing may ever attend to.

        Raises:
            InputError: the model did not call transformers' attention interface for each layer.
        """
        self._new, self._attended, self._hidden = valid.shape[1], 0, None
        self._filled[..., self._start : self._start + self._new] = valid.transpose(1, 2)
        own = lm.config._attn_implementation
        token = _ACTIVE.set(self)
        lm.config._attn_implementation = _NAME
        try:
            yield
        finally:
            lm.config._attn_implementation = own
            _ACTIVE.reset(token)
        if self._attended != len(self.layers):
            raise InputError(
                f"{type(lm).__name__} attended in {self._attended} of {len(self.layers)} layers "
                "through transformers' attention interface; thinking in parallel needs all"
            )
        self._start += self._new

    def at(self, rows: Tensor, columns: Tensor) -> BranchCache:
        """Another cache, of a grid (B', P') of these branches; a branch may come several times.

        Args:
            rows, columns: (B', P') int64, the place of each branch in this grid. A row's branches
                are of one text.
        """
        chosen = copy.copy(self)
        chosen._sees_text = self._sees_text[rows, columns]
        chosen._filled = self._filled[rows, columns]
        chosen.layers = [layer.at(rows, columns, self._start) for layer in self.layers]
        return chosen

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        layer.append(key_states, value_states, self._start, self._new)
        self._pending = layer
        return key_states, value_states

    def attend(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """(B, H, s * P, d) queries of the newest tokens; returns (B, s * P, H, d)."""
        layer, self._pending = self._pending, None
        if layer is None:
            raise InputError(
                "a layer attends without keys and values of its own; thinking in parallel needs a "
                "cache entry for every layer"
            )
        self._attended += 1
        batch, heads, queries, _ = query.shape
        kv_heads = layer.text_keys.shape[1]
        # (B, H_kv, P, G * s, d): a group of query heads shares its key head.
        grouped = query.unflatten(2, (self._new, -1)).unflatten(1, (kv_heads, -1))
        grouped = grouped.permute(0, 1, 4, 2, 3, 5).flatten(3, 4) * scaling
        branches, rows = grouped.shape[2:4]
        width = self._sees_text.shape[-1] + self._start + self._new
        block = max(1, _BLOCK_ELEMENTS // (batch * kv_heads * rows * width))
        parts = [
            self._attend_block(layer, grouped[:, :, p : p + block], p, softcap)
            for p in range(0, branches, block)
        ]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        output = output.unflatten(3, (heads // kv_heads, self._new))
        return output.permute(0, 4, 2, 1, 3, 5).reshape(batch, queries, heads, -1)

    def _attend_block(
        self, layer: _BranchLayer, query: Tensor, first: int, softcap: float | None
    ) -> Tensor:
        """Attention of the branches from ``first`` on; (B, H_kv, p, G * s, d) in and out."""
        count, rows = query.shape[2:4]
        chosen, end = slice(first, first + count), self._start + self._new
        hidden = self._hidden
        if hidden is None:
            hidden = ~self._visible(chosen)
        if count == self._sees_text.shape[1]:
            self._hidden = hidden
        tail_keys = layer.tail_keys[:, :, chosen, :end]
        tail_values = layer.tail_values[:, :, chosen, :end]
        text = query.flatten(2, 3) @ layer.text_keys.transpose(-1, -2)
        tail = query @ tail_keys.transpose(-1, -2)
        logits = torch.cat([text.unflatten(2, (count, rows)), tail], dim=-1)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        # In place: (B, H_kv, p, G, s, L + t), a group of queries sees the same.
        logits.unflatten(3, (-1, self._new)).masked_fill_(hidden, -torch.inf)
        weights = logits.softmax(dim=-1, dtype=torch.float32)
        on_text, on_tail = weights.to(query.dtype).split([text.shape[-1], end], dim=-1)
        seen = (on_text.flatten(2, 3) @ layer.text_values).unflatten(2, (count, rows))
        return seen + on_tail @ tail_values

    def _visible(self, chosen: slice) -> Tensor:
        """(B, 1, p, 1, s, L + t): what each query may attend to."""
        end = self._start + self._new
        steps = torch.arange(self._start, end, device=self._filled.device)
        order = torch.arange(end, device=self._filled.device) <= steps[:, None]  # (s, t)
        # A token always sees itself: the row of a masked one would otherwise have no softmax.
        itself = torch.arange(end, device=self._filled.device) == steps[:, None]
        tail = (self._filled[:, chosen, None, :end] & order) | itself
        text = self._sees_text[:, chosen, None].expand(-1, -1, self._new, -1)
        return torch.cat([text, tail], dim=-1)[:, None, :, None]


class _BranchLayer(DynamicLayer):
    """One layer: texts (B, H_kv, L, d) and tails (B, H_kv, P, T, d), filled from the left."""

    def __init__(
        self, text_keys: Tensor, text_values: Tensor, tail_keys: Tensor, tail_values: Tensor
    ) -> None:
        super().__init__()
        self.text_keys, self.text_values = text_keys, text_values
        self.tail_keys, self.tail_values = tail_keys, tail_values

    @classmethod
    def empty(
        cls, keys: Tensor, values: Tensor, rows: Tensor, branches: int, capacity: int
    ) -> _BranchLayer:
        text = _rows(keys, rows), _rows(values, rows)
        # What is read was written before: a forward pass fills the whole grid, masked or not.
        tails = (
            part.new_empty(*part.shape[:2], branches, capacity, part.shape[-1]) for part in text
        )
        return cls(*text, *tails)

    def append(self, keys: Tensor, values: Tensor, start: int, count: int) -> None:
        # (B, H_kv, s * P, d), tokens before branches.
        for tail, new in ((self.tail_keys, keys), (self.tail_values, values)):
            tail[:, :, :, start : start + count] = new.unflatten(2, (count, -1)).transpose(2, 3)

    def at(self, rows: Tensor, columns: Tensor, filled: int) -> _BranchLayer:
        chosen = _BranchLayer.empty(
            self.text_keys, self.text_values, rows[:, 0], rows.shape[1], self.tail_keys.shape[3]
        )
        chosen.tail_keys[..., :filled, :] = _cells(self.tail_keys, rows, columns, filled)
        chosen.tail_values[..., :filled, :] = _cells(self.tail_values, rows, columns, filled)
        return chosen


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    every = torch.arange(len(states), device=rows.device)
    return states if torch.equal(rows, every) else states[rows]


def _cells(tail: Tensor, rows: Tensor, columns: Tensor, filled: int) -> Tensor:
    """(B, H, P, T, d) to (B', H, P', filled, d)."""
    return tail[:, :, :, :filled].transpose(1, 2)[rows, columns].transpose(1, 2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if s_aux is not None:
        raise InputError("attention sinks are not understood; use a model without them")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _ACTIVE.get().attend(query, scale, softcap), None


# No mask function is registered under this name, so transformers builds no mask for it.
AttentionInterface.register(_NAME, _attention)
