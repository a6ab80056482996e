"""The ids that mark a thought: ``<think>``, ``</think>``, padding and the end of sequence."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.rendering import Renderer
from distforge.rendering.thinking_tokens import CLOSE as CLOSE
from distforge.rendering.thinking_tokens import OPEN as OPEN
from distforge.rendering.thinking_tokens import THINKING_TOKENS


def thinking_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Of the eight thinking tokens, those that the tokenizer has."""
    ids = tokenizer.get_vocab()
    return {token: ids[token] for token in THINKING_TOKENS if token in ids}


def heading_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Of the thinking tokens that begin a step of a thought: all but the two tags."""
    known = thinking_ids(tokenizer)
    return frozenset(known[token] for token in known if token not in (OPEN, CLOSE))


@dataclass(frozen=True)
class Tags:
    """Token ids. ``open`` and ``close`` are ``<think>`` and ``</think>``.

    eos: ends what is written; it may be missing.
    stops: whatever else ends it.
    absent: ids of the model's vocabulary that no tokenizer has; they are never written.

    Raises:
        InputError: ids that are negative, or one id for two of open, close and pad.
    """

    open: int
    close: int
    pad: int
    eos: int | None = None
    stops: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        distinct = {self.open, self.close, self.pad}
        if len(distinct) < 3 or min(distinct) < 0:
            raise InputError(
                f"open = {self.open}, close = {self.close} and pad = {self.pad} should be three "
                "different ids; add the thinking tokens to the tokenizer"
            )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        opening: str = OPEN,
        closing: str = CLOSE,
        *,
        model: PreTrainedModel | None = None,
    ) -> Tags:
        """The tags of a tokenizer that has the thinking tokens; padding falls back to its eos.

        Args:
            opening, closing: the tags, each one token of the tokenizer.
            model: that writes; adds what its configurations say of ends, and the ids that the
                tokenizer lacks.

        Raises:
            InputError: a thinking token is missing, or there is no eos.
        """
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (opening, closing) if token not in vocabulary]
        if missing:
            raise InputError(
                f"the tokenizer has no {' and no '.join(missing)}; use a model that step 1 baked, "
                "add the tokens with distforge.models.vocabulary.add_thinking_tokens, or, where "
                "the model thinks between tags of its own, name those (`distforge judge "
                "--tags.opening --tags.closing`)"
            )
        renderer = Renderer(tokenizer, model)
        return cls(
            vocabulary[opening],
            vocabulary[closing],
            renderer.pad,
            renderer.end,
            tuple(stop for stop in renderer.stops if stop != renderer.end),
            renderer.absent,
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end what is written."""
        return self.stops if self.eos is None else (self.eos, *self.stops)

    def banned(self, *, close: bool) -> tuple[int, ...]:
        """Ids that no thought may contain; ``close``: whether ``</think>`` is one of them."""
        never = {self.open, self.pad, *self.ends, *self.absent}
        return tuple(sorted(never | ({self.close} if close else set())))
