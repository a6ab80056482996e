"""Thinking tokens into any tokenizer, and rows for them into any model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.errors import InputError


def add_thinking_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], seed: int
) -> list[int]:
    """Give each token one id and one row; the ids, in the order of ``tokens``.

    New rows of the input embedding, and of an output head of its own, are drawn per dimension from
    a normal distribution with the mean and standard deviation of the existing rows, by ``seed``.
    Tied weights stay tied. Tokens that the tokenizer has as whole ids already keep id and row.
    They are ordinary (not special) tokens: decoding shows them.

    Raises:
        InputError: a token does not become exactly one id.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    old_size = len(tokenizer)
    if new:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
    ids = [_single_id(tokenizer, token) for token in tokens]
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new:
        generator = torch.Generator().manual_seed(seed)
        new_ids = [ids[tokens.index(token)] for token in new]
        embedding = model.get_input_embeddings().weight
        _draw_rows(embedding, new_ids, old_size, generator)
        head = model.get_output_embeddings()
        if head is not None and head.weight is not embedding:
            _draw_rows(head.weight, new_ids, old_size, generator)
    return ids


@torch.no_grad()
def _draw_rows(weight: Tensor, ids: list[int], old_size: int, generator: torch.Generator) -> None:
    """Rows beyond ``old_size`` are padding of the matrix, or new: they do not count as existing."""
    existing = weight[: min(old_size, weight.shape[0])].float().cpu()
    noise = torch.randn(len(ids), weight.shape[1], generator=generator)
    drawn = existing.mean(dim=0) + existing.std(dim=0) * noise
    weight[ids] = drawn.to(weight.device, weight.dtype)


def _single_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.decode(ids) != token:
        raise InputError(
            f"the tokenizer writes {token!r} as {ids}; expected one id that decodes to it. "
            "Remove conflicting entries from its vocabulary"
        )
    return int(ids[0])
