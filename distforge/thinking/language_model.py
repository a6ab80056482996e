"""What thinking asks of a Hugging Face causal LM, and how its head is run on chosen slots only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distforge.errors import InputError
from distforge.models.context import context_length

# A smaller matrix stays in the processor's cache, whichever way it lies.
_WORTH_TURNING = 1 << 16

# The attention functions of transformers whose masks are understood here. QK-Clip's measuring
# functions (distforge.models.attention) end with the name of the one that they measure.
_IMPLEMENTATIONS = ("eager", "sdpa")


@dataclass(frozen=True)
class Prediction:
    """Logits (M, V) of what comes after M slots, and the hidden states (M, d) they come from."""

    logits: Tensor
    hidden: Tensor

    def of(self, slots: Tensor) -> Prediction:
        """At an index or a mask of the M."""
        return Prediction(self.logits[slots], self.hidden[slots])


def language_model(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, of a `ThinkingModel` or of a plain transformers model."""
    lm = getattr(model, "lm", model)
    assert isinstance(lm, PreTrainedModel), type(lm).__name__
    return lm


@contextmanager
def evaluating(model: nn.Module) -> Iterator[PreTrainedModel]:
    """The language model without dropout and without gradients; its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield language_model(model)
    finally:
        model.train(was_training)


def implementation(lm: PreTrainedModel) -> str:
    """ "eager" or "sdpa", by what the model's attention runs at present.

    Raises:
        InputError: another implementation, or a model that does not use transformers' attention
            interface.
    """
    name = str(lm.config._attn_implementation or "eager")
    base = next((known for known in _IMPLEMENTATIONS if name.endswith(known)), None)
    if base is None or not lm._supports_attention_backend:
        raise InputError(
            f"{type(lm).__name__} runs attention by {name!r}, which cannot think in parallel; use "
            "a model of transformers' attention interface, with attn_implementation eager or sdpa"
        )
    return base


def attention_mask(lm: PreTrainedModel, allowed: Tensor) -> Tensor:
    """``allowed`` (B, 1, Q, K), true = may attend, in the form that the model's attention takes."""
    if implementation(lm) == "sdpa":
        return allowed
    zeros = torch.zeros(allowed.shape, dtype=lm.dtype, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(lm.dtype).min)


def require_room(lm: PreTrainedModel, length: int) -> None:
    """Raise InputError unless sequences of ``length`` tokens, thoughts included, fit the model.

    A model whose layers attend to a sliding window is taken for lengths within the window, where
    it attends as any other.
    """
    implementation(lm)
    config: Any = lm.config.get_text_config(decoder=True)
    context = context_length(lm)
    if context is not None and length > context:
        raise InputError(
            f"a text with a thought and what follows takes {length} tokens, the model's context "
            f"is {context}; shorten the text or the thoughts"
        )
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{type(lm).__name__} has layers of {sorted(kinds)}; thinking in parallel needs "
            "attention in all of them"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and length > window and "sliding_attention" in kinds:
        raise InputError(
            f"a text with a thought takes {length} tokens, and the model attends to a window of "
            f"{window}; shorten the text or the thoughts"
        )


@contextmanager
def head_at(
    lm: PreTrainedModel, chosen: Tensor | None, *, states_only: bool = False
) -> Iterator[list[Tensor]]:
    """Inside, a forward pass computes logits at the chosen slots alone, of shape (S, V).

    Args:
        chosen: (B, L) boolean with S true values, (S,) indices into the flattened slots, or None
            for all slots as they are, (B, L).
        states_only: the hidden states are all that is wanted: logits of one slot are computed.

    Yields a list that receives the hidden states (S, d) which the head read. Whatever the model
    does to its logits after the head (scaling, capping) is done to these as well.

    Raises:
        InputError: the model made its logits without calling its output embedding.
    """
    hidden: list[Tensor] = []

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        rows = args[0]
        if chosen is not None:
            rows = rows[chosen] if chosen.dtype == torch.bool else rows.flatten(0, 1)[chosen]
        hidden.append(rows)
        return (rows[:1] if states_only else rows,)

    handle = lm.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield hidden
    finally:
        handle.remove()
    if not hidden:
        raise InputError(
            f"{type(lm).__name__} does not call its output embedding as a module; thinking needs "
            "the hidden states that go into it"
        )


@torch.no_grad()
def is_head_last(lm: PreTrainedModel) -> bool:
    """Whether logits are what the output embedding makes of hidden states, and nothing is done to
    them behind it (scaling, capping): asked of the model itself."""
    ids = torch.arange(4, device=lm.device)[None] % lm.get_input_embeddings().num_embeddings
    with evaluating(lm), head_at(lm, None) as hidden:
        logits = lm(input_ids=ids, use_cache=False).logits
        again = lm.get_output_embeddings()(hidden[0])
    return torch.equal(logits, again)


def turn_for_writing_(lm: PreTrainedModel) -> None:
    """Let the matrices of a model on a CPU lie column by column, in place; values are the same.

    BLAS then multiplies the few rows of a step of generation by them 1.2 to 2.6 times as fast (8 to
    64 rows, float32, one thread). The output embedding, often that of the input as well, stays.
    """
    head = lm.get_output_embeddings()
    for module in lm.modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        weight = module.weight
        if weight.device.type == "cpu" and weight.numel() >= _WORTH_TURNING:
            weight.data = weight.data.t().contiguous().t()
