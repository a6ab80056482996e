"""The eight tokens that a thought is written with."""

from __future__ import annotations

THINKING_TOKENS: tuple[str, ...] = (
    "<think>",
    "</think>",
    "<step>",
    "<reason>",
    "<mece>",
    "<falsify>",
    "<expert>",
    "<doubt>",
)
OPEN, CLOSE = THINKING_TOKENS[:2]
