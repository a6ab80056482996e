"""How models without a chat template are asked: ``Question: {question}\\n``.

They write ``{reasoning}\\nAnswer: {answer}`` and the end of sequence behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def question_text(question: str, prompt: str = "") -> str:
    """The text that asks ``question``, with a prompt in front of it where one is given."""
    return f"{prompt}\nQuestion: {question}\n" if prompt else f"Question: {question}\n"


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation up to where its last question is answered."""
    parts = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "user":
            parts.append(question_text(content))
        else:
            parts.append(f"{content}\n" if role == "system" else f"{content}\n\n")
    return "".join(parts)
