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

    Tokens are ordinary (not special), so decoded text shows them. A token that is in the tokenizer
    with a row in the model keeps both, untouched. Every other one gets a row of the input
    embedding, and of an output head of its own, drawn per dimension from a normal distribution
    with the mean and standard deviation of the rows in use; a matrix that is padded beyond the
    tokenizer gives up free rows before it grows. Tied weights stay tied. Equal arguments give
    equal rows on every process, whatever the device.

    Args:
        model: changed in place; optimizers must be built afterwards.
        tokenizer: changed in place.
        seed: of the drawn rows; torch's CPU random state is left as it was.

    Raises:
        InputError: a token is given twice, or the tokenizer cannot write a token as one visible id.
    """
    if not tokens or len(set(tokens)) != len(tokens):
        raise InputError(f"the thinking tokens are {list(tokens)}; give at least one, each once")
    rows = model.get_input_embeddings().weight.shape[0]
    before = tokenizer.get_vocab()
    in_use = sorted({index for index in before.values() if index < rows})
    # A token that is only a word of the model's vocabulary is still split by the pre-tokenizer:
    # adding it keeps its id and makes it whole.
    missing = [token for token in tokens if token not in tokenizer.get_added_vocab()]
    if missing:
        added = [AddedToken(token, normalized=False, special=False) for token in missing]
        tokenizer.add_tokens(added)
    ids = [_single_id(tokenizer, token) for token in tokens]
    if max(ids) >= rows:
        with torch.random.fork_rng(devices=[]):  # for the values that are drawn over below
            model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    new = [
        index
        for token, index in zip(tokens, ids, strict=True)
        if token not in before or index >= rows
    ]
    if new:
        generator = torch.Generator().manual_seed(seed)
        for matrix in _vocabulary_matrices(model):
            _draw_rows(matrix, new, in_use, generator)
    return ids


def _single_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Checked alone and inside a word, where pre-tokenizers and stripping would show."""
    alone = tokenizer.encode(token, add_special_tokens=False)
    text = f"a{token}b {token}{token} c"
    inside = tokenizer.encode(text, add_special_tokens=False)
    shown = tokenizer.decode(inside, skip_special_tokens=True)
    if len(alone) != 1 or inside.count(alone[0]) != 3 or shown.count(token) != 3:
        raise InputError(
            f"the tokenizer writes {token!r} as ids {alone} and decodes {text!r} to {shown!r}; "
            "expected one id that decoding shows: remove the token, or make it not special, in "
            "tokenizer.json and tokenizer_config.json"
        )
    return int(alone[0])


def _vocabulary_matrices(model: PreTrainedModel) -> list[Tensor]:
    """Parameters with a row for each id, a tied one once; a head's bias as a column."""
    embedding = model.get_input_embeddings().weight
    matrices = [embedding]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not embedding:
        matrices.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        matrices.append(head.bias.detach().view(-1, 1))
    return matrices


@torch.no_grad()
def _draw_rows(
    matrix: Tensor, new: list[int], in_use: list[int], generator: torch.Generator
) -> None:
    existing = matrix[in_use].float().cpu()
    mean, std = existing.mean(dim=0), existing.std(dim=0, correction=0)
    noise = torch.randn(len(new), matrix.shape[1], generator=generator)
    matrix[new] = (mean + std * noise).to(matrix.device, matrix.dtype)
