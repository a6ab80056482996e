"""What a model should write of an example, ``{reasoning}\\nAnswer: {answer}``, and reading it back.

How it is asked is `distforge.rendering`'s.
"""

from __future__ import annotations

from distforge.data.answers import ANSWER


def completion_text(reasoning: str, answer: str) -> str:
    """What the model should write; without reasoning, the bare answer."""
    answered = f"{ANSWER} {answer}"
    return f"{reasoning}\n{answered}" if reasoning else answered
