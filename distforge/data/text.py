"""How an example is written for a model: the one place that spells the layout.

Plain models read ``Question: {question}\\n`` and write ``{reasoning}\\nAnswer: {answer}`` and the
end of sequence. A model that brings a chat template is asked through it instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distforge.data.answers import ANSWER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def question_text(
    question: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: str = "",
    turns: Sequence[Mapping[str, str]] = (),
) -> str:
    """The text that asks ``question``, with a strategy prompt in front of it where one is given.

    ``turns``: what was said before, each with a role and a content; see `Example.turns`.
    """
    asked = f"{prompt}\n{question}" if prompt else question
    if tokenizer is not None and getattr(tokenizer, "chat_template", None):
        messages = [*turns, {"role": "user", "content": asked}]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    said = "".join(
        f"Question: {turn['content']}\n" if turn["role"] == "user" else f"{turn['content']}\n"
        for turn in turns
    )
    return f"{said}{prompt}\nQuestion: {question}\n" if prompt else f"{said}Question: {question}\n"


def completion_text(reasoning: str, answer: str) -> str:
    """What the model should write; without reasoning, the bare answer."""
    answered = f"{ANSWER} {answer}"
    return f"{reasoning}\n{answered}" if reasoning else answered
