"""A key-value cache of one text stream and one thought stream a row, whose slots can be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from distforge.thinking.language_model import attention_mask, head_at


class SlotCache(Cache):
    """Slots [0, used) hold keys and values; who sees which slot is a mask for each stream.

    Args:
        text: the cache of one forward pass over (B, L) texts, padded on the right.
        lengths: (B,) int64, tokens of each text.
        slots: how many there are at first, at least L. More are made where rows that think at
            different times need them.

    ``text`` and ``thought`` (B, slots) are boolean: the slots that a new token of the stream
    sees. The attention is the model's own, under an explicit mask.
    """

    def __init__(self, text: DynamicCache, lengths: Tensor, slots: int) -> None:
        super().__init__(layers=[_SlotLayer(layer, slots) for layer in text.layers])
        self.used = text.layers[0].keys.shape[2]
        columns = torch.arange(slots, device=lengths.device)
        self.text = columns < lengths[:, None]
        self.thought = torch.zeros_like(self.text)

    def feed(
        self,
        lm: PreTrainedModel,
        tokens: Tensor,
        places: Tensor,
        valid: Sequence[Tensor],
        streams: Sequence[bool],
        first: int,
        opening: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One forward pass over q new slots a row.

        Args:
            tokens, places: (B, q) int64, ids and their places in the sequence.
            valid: for each column (B,) boolean, false for a slot that nothing will see.
            streams: for each column, whether it continues the thought instead of the text.
            first: the column from which on predictions are returned.
            opening: (B,) boolean, rows whose thought stream starts anew, from the text stream, with
                the first column of thought.

        Returns logits (B, q - first, V) and hidden states (B, q - first, d).
        """
        batch, count = tokens.shape
        visible = self._add(valid, streams, opening)
        # Without columns to leave out, the head reads what it would read anyway.
        chosen = None
        if first:
            slots = torch.arange(batch * count, device=tokens.device)
            chosen = slots.view(batch, count)[:, first:].flatten()
        with head_at(lm, chosen) as hidden:
            logits = lm(
                input_ids=tokens,
                attention_mask=attention_mask(lm, visible),
                position_ids=places,
                past_key_values=self,
                use_cache=True,
            ).logits
        self.used += count
        shape = (batch, count - first, -1)
        return logits.view(shape), hidden[0].view(shape)

    def _add(
        self, valid: Sequence[Tensor], streams: Sequence[bool], opening: Tensor | None
    ) -> Tensor:
        """The mask (B, 1, q, used + q) of new slots, which are entered into their streams."""
        end = self.used + len(valid)
        self._require(end)
        visible = []
        for slot, (inside, in_thought) in enumerate(zip(valid, streams, strict=True), self.used):
            if in_thought and opening is not None:
                self.thought = torch.where(opening[:, None], self.text, self.thought)
                opening = None
            stream = self.thought if in_thought else self.text
            # Filling sees itself at least: without any slot it would have no softmax.
            stream[:, slot] = True
            visible.append(stream[:, :end].clone())
            stream[:, slot] = inside
        return torch.stack(visible, dim=1)[:, None]

    def compact(self, holding: Tensor) -> None:
        """Give up the slots that no row will see again; ``holding`` (B,): rows with a thought."""
        self.thought &= holding[:, None]
        kept = (self.text | self.thought)[:, : self.used].any(dim=0)
        if kept.all():
            return
        first = int((~kept).nonzero()[0])
        columns = first + kept[first:].nonzero()[:, 0]
        end = first + len(columns)
        for mask in (self.text, self.thought):
            mask[:, first:end] = mask[:, columns]
            mask[:, end:] = False
        if len(columns):
            for layer in self.layers:
                layer.move(columns, first)
        self.used = end

    def _require(self, slots: int) -> None:
        have = self.text.shape[1]
        if slots <= have:
            return
        more = max(slots, have + have // 2)
        self.text = nn.functional.pad(self.text, (0, more - have))
        self.thought = nn.functional.pad(self.thought, (0, more - have))
        for layer in self.layers:
            layer.enlarge(more)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer_idx].store(key_states, value_states, self.used)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.used


class _SlotLayer(DynamicLayer):
    """One layer's keys and values, (B, H_kv, slots, d)."""

    def __init__(self, text: DynamicLayer, slots: int) -> None:
        super().__init__()
        assert text.keys is not None
        assert text.values is not None
        self._buffers = [text.keys, text.values]
        self.enlarge(slots)

    def enlarge(self, slots: int) -> None:
        self._buffers = [_enlarged(states, slots) for states in self._buffers]

    def store(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        end = start + keys.shape[2]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start:end] = new
        stored_keys, stored_values = self._buffers
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def move(self, columns: Tensor, first: int) -> None:
        """Slots ``columns`` to the slots from ``first`` on."""
        for buffer in self._buffers:
            buffer[:, :, first : first + len(columns)] = buffer[:, :, columns]


def _enlarged(states: Tensor, slots: int) -> Tensor:
    return nn.functional.pad(states, (0, 0, 0, slots - states.shape[2]))
