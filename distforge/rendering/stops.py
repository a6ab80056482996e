"""Which ids end a turn, and which ids of a model no tokenizer has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are filled up with, always masked: the eos of a tokenizer without padding."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None) -> set[int]:
    """The ends of sequence of a tokenizer and of a model's configurations, which may list many."""
    found = set(listed(tokenizer.eos_token_id))
    if model is not None:
        text = _text_config(model)
        for source in (model.config, text, getattr(model, "generation_config", None)):
            found.update(listed(getattr(source, "eos_token_id", None)))
        found = {index for index in found if index < text.vocab_size}
    return found


def absent_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that the model has a row for and the tokenizer no text: rows of a padded vocabulary."""
    rows = _text_config(model).vocab_size
    return tuple(sorted(set(range(rows)) - set(tokenizer.get_vocab().values())))


def _text_config(model: PreTrainedModel) -> Any:
    """That of the language model; of one that is wrapped for thinking too."""
    return getattr(model, "lm", model).config.get_text_config(decoder=True)


def listed(ids: int | Iterable[int] | None) -> Iterable[int]:
    """The ids of a setting that may name one, several or none."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
