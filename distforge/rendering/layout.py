"""A model's text as a person reads it: each step of a thought on a line, or without the thought.

Text that grows gives a layout that grows: what was shown never has to be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from distforge.rendering.thinking_tokens import CLOSE, OPEN, THINKING_TOKENS

_TOKEN = re.compile("|".join(map(re.escape, THINKING_TOKENS)))


def lay_out(
    text: str,
    *,
    thoughts: bool = True,
    styles: tuple[str, str] = ("", ""),
    finished: bool = False,
) -> str:
    """``text`` with a line for each thinking token in a thought, and none before the first.

    Args:
        thoughts: False leaves out all from ``<think>`` to ``</think>``, both included.
        styles: what switches a terminal to a thought's style, and back.
        finished: False holds back an end that may become a tag.
    """
    if not finished:
        text = text[: len(text) - _begun(text)]
    parts: list[str] = []
    inside, place = False, 0
    for found in _TOKEN.finditer(text):
        parts.append(_part(text[place : found.start()], inside, thoughts))
        place, token = found.end(), found[0]
        if token == OPEN and not inside:
            inside = True
            parts.append(styles[0] if thoughts else "")
        if thoughts or not inside:
            before = next((part for part in reversed(parts) if part not in ("", *styles)), "\n")
            begins = inside and not before.endswith("\n")
            parts.append(f"\n{token}" if begins else token)
        if token == CLOSE and inside:
            inside = False
            parts.append(styles[1] if thoughts else "")
    parts.append(_part(text[place:], inside, thoughts))
    if finished and inside and thoughts:
        parts.append(styles[1])
    return "".join(parts).lstrip()


def without_thoughts(text: str) -> str:
    """What a model says aloud."""
    return lay_out(text, thoughts=False, finished=True).rstrip()


class Shown:
    """Passes on what a growing text has more each time.

    Args:
        write: takes the new piece.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._text = write, ""

    def update(self, text: str) -> None:
        """Takes the whole text so far; one that does not go on from the last is not shown yet."""
        if text.startswith(self._text):
            self._write(text[len(self._text) :])
            self._text = text


def _begun(text: str) -> int:
    """How many last characters may be the beginning of a thinking token."""
    place = text.rfind("<")
    if place < 0:
        return 0
    end = text[place:]
    return (
        len(end) if any(token.startswith(end) and token != end for token in THINKING_TOKENS) else 0
    )


def _part(text: str, inside: bool, thoughts: bool) -> str:
    return text if thoughts or not inside else ""
