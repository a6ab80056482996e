"""Text in which control tokens are only text: what a user types never becomes a control id.

A tokenizer finds its added tokens anywhere in a text. So a user's ``<|im_end|>`` is replaced by a
stand-in, a private-use character, before it goes into a template. Where stand-ins are left in a
rendered text, it is encoded by a copy of the tokenizer that knows its control tokens by those
characters alone: the template's become the characters, the user's the plain text they were. All
other text is encoded by the tokenizer itself, as anybody's transformers would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.rendering.thinking_tokens import THINKING_TOKENS

# Of a private-use plane that no text is written in; one character a control token.
_FIRST_STAND_IN = 0xF0000
# A copy takes a second of a large vocabulary: one a tokenizer, as long as its tokens stay.
_COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Tokenizer]] = WeakKeyDictionary()


class ControlTokens:
    """The control tokens of a tokenizer: special ones, those for thinking, those of its template.

    Args:
        tokenizer: any; not changed.
        template: source of its chat template, where it has one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "") -> None:
        self._tokenizer = tokenizer
        names = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in THINKING_TOKENS or token.content in template
        }
        # The longest first: a tokenizer that has <a> and <a>b reads "<a>b" as the latter.
        self.ids = {name: names[name] for name in sorted(names, key=len, reverse=True) if name}
        self._stand_ins = {
            name: chr(_FIRST_STAND_IN + number) for number, name in enumerate(self.ids)
        }
        self._swapped = self._stand_ins | {sign: name for name, sign in self._stand_ins.items()}
        self._any = _one_of(self.ids)
        self._not_thinking = _one_of(name for name in self.ids if name not in THINKING_TOKENS)
        self._either = _one_of(self._swapped)
        self._stand_in = _one_of(self._stand_ins.values())

    def literal(self, text: str, *, thinking: bool = False) -> str:
        """``text`` with a stand-in for each control token; ``thinking`` leaves those for thinking
        what they are."""
        pattern = self._not_thinking if thinking else self._any
        return pattern.sub(lambda found: self._stand_ins[found[0]], text)

    def first(self, text: str) -> re.Match[str] | None:
        """The first control token in a text."""
        return self._any.search(text)

    def last_start(self, text: str) -> int:
        """Where the last control token of a text begins; 0 without one."""
        return max((found.start() for found in self._any.finditer(text)), default=0)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts with or without stand-ins; none is put around them.

        Raises:
            InputError: a stand-in, and a tokenizer that can read it only as a control token.
        """
        if not texts:
            return []
        rows: list[list[int]] = list(
            self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        )
        for index, text in enumerate(texts):
            if self._stand_in.search(text):
                swapped = self._either.sub(lambda found: self._swapped[found[0]], text)
                rows[index] = self._renamed().encode(swapped, add_special_tokens=False).ids
        return rows

    def _renamed(self) -> Tokenizer:
        """The tokenizer, its control tokens called by their stand-ins."""
        tokens = (len(self._tokenizer), self.ids)
        known = _COPIES.get(self._tokenizer)
        if known is None or known[0] != tokens:
            known = tokens, self._copy()
            _COPIES[self._tokenizer] = known
        return known[1]

    def _copy(self) -> Tokenizer:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        renamed = None
        if isinstance(backend, Tokenizer):
            renamed = Tokenizer.from_str(_rename(json.loads(backend.to_str()), self._stand_ins))
        if renamed is None or any(
            renamed.token_to_id(self._stand_ins[name]) != index for name, index in self.ids.items()
        ):
            raise InputError(
                f"a text holds a control token (one of {', '.join(list(self.ids)[:3])}, …), which "
                f"{type(self._tokenizer).__name__} cannot read as text; take it out of the text"
            )
        return renamed


def _one_of(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _rename(state: dict[str, Any], names: dict[str, str]) -> str:
    """The JSON of a tokenizer whose added tokens are called otherwise, with the same ids.

    What a merge would make of the old name's pieces is left in pieces.
    """
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): index for word, index in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if not names.keys() & {*pair, "".join(pair)}
        ]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    state.update(post_processor=None, truncation=None, padding=None)
    return json.dumps(state)
