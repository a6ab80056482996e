"""Format adherence: whether an answer is laid out as the strategy asks, right or wrong.

The layout of a text is what a reader sees at a glance: which thinking tokens it uses, in which
order they first appear, and where the answer line stands. Numbers, words and how often a token
comes again are content and do not count.
"""

from __future__ import annotations

import re

from distforge.data import THINKING_TOKENS, Example
from distforge.data.text import completion_text

_MARK = re.compile("|".join(map(re.escape, [*THINKING_TOKENS, "Answer:"])))

Layout = tuple[str, ...]


def layout(text: str) -> Layout:
    """The thinking tokens and ``Answer:`` of a text, each once, by first appearance."""
    return tuple(dict.fromkeys(_MARK.findall(text)))


def strategy_layout(example: Example) -> Layout:
    """The layout of the example's own verified trace."""
    return layout(completion_text(example.reasoning, example.answer))
