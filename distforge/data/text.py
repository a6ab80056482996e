"""What a model should write of an example, ``{reasoning}\\nAnswer: {answer}``, and reading it back.

How it is asked is `distforge.rendering`'s.
"""

from __future__ import annotations

import re

# What comes between a question and its answer.
ANSWER = "Answer:"
_ANSWER = re.compile(rf"{ANSWER}[ \t]*([^\n]*)")


def completion_text(reasoning: str, answer: str) -> str:
    """What the model should write; without reasoning, the bare answer."""
    answered = f"{ANSWER} {answer}"
    return f"{reasoning}\n{answered}" if reasoning else answered


def extract_answer(generated: str) -> str | None:
    """What follows the last ``Answer:`` on its line, or None where there is none."""
    found = _ANSWER.findall(generated)
    return found[-1].strip() if found else None
