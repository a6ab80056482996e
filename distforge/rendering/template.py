"""What a tokenizer's chat template does: what it puts around a turn, and what it refuses.

All of it is found by rendering conversations, not by reading the template.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.rendering.thinking_tokens import CLOSE, OPEN

Message = dict[str, str]

# A template that prints the date prints this one, on which Llama's own falls back: the text that a
# model was trained behind stays the same, tomorrow and after a restart.
DATE = datetime.date(2024, 7, 26)
_FORMAT = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1""")
_PINNED = "{%- macro strftime_now("

# Stand for what is said, to find what is put around it; private-use characters, not those of
# `control`.
_ASKED, _TOLD = "\U00100000", "\U00100001"


def pinned(template: str) -> str:
    """The template, with `DATE` for the date of today where it asks for that.

    The date is written into the template, so whoever loads the exported tokenizer renders the very
    text that the model was trained behind.
    """
    if "strftime_now" not in template or template.startswith(_PINNED):
        return template
    formats = sorted({found[2] for found in _FORMAT.finditer(template)})
    table = ", ".join(f"{form!r}: {DATE.strftime(form)!r}" for form in formats)
    value = f"{{{table}}}.get(format, {DATE.isoformat()!r})"
    # "+%}" keeps a line break that the template begins with.
    return f"{_PINNED}format) -%}}{{{{- {value} -}}}}{{%- endmacro +%}}{template}"


def pin_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """`pinned` for all templates of a tokenizer, in place; whether one of them prints the date."""
    before = getattr(tokenizer, "chat_template", None)
    if not before:
        return False
    if isinstance(before, dict):
        tokenizer.chat_template = {name: pinned(text) for name, text in before.items()}
    else:
        tokenizer.chat_template = pinned(before)
    return bool(tokenizer.chat_template != before)


class ChatTemplate:
    """A tokenizer's chat template, its date fixed.

    Args:
        tokenizer: with a ``chat_template``; not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.source = pinned(str(tokenizer.get_chat_template()))

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The text of a conversation; ``generation`` goes on to where the assistant's turn begins.

        Raises:
            InputError: the template refuses the conversation.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=generation,
                )
            )
        except Exception as error:  # templates raise Jinja's errors and Python's own
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the tokenizer's chat template refuses a conversation of the roles {roles}: "
                f"{error}; give turns that it takes, or correct its chat_template"
            ) from error

    @cached_property
    def has_system_role(self) -> bool:
        """Whether a system message is rendered, and not refused or dropped."""
        messages = [{"role": "system", "content": _TOLD}, {"role": "user", "content": _ASKED}]
        try:
            return _TOLD in self.render(messages, generation=True)
        except InputError:
            return False

    @cached_property
    def around_question(self) -> tuple[str, str]:
        """What stands in front of a lone question, and between it and the answer."""
        text = self.render([{"role": "user", "content": _ASKED}], generation=True)
        before, found, after = text.rpartition(_ASKED)
        if not found:
            raise InputError(
                "the tokenizer's chat template leaves out what the user says; correct its "
                "chat_template"
            )
        return before, after

    @property
    def opened(self) -> str:
        """Where the template opens a thought by itself: the end of every prompt, from ``<think>``
        on; else an empty string."""
        _, after = self.around_question
        _, found, inside = after.rpartition(OPEN)
        return f"{OPEN}{inside}" if found and CLOSE not in inside else ""

    @cached_property
    def after_answer(self) -> str:
        """What stands behind an answer that ends a conversation."""
        messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _TOLD}]
        return self.render(messages, generation=False).rpartition(_TOLD)[2]
