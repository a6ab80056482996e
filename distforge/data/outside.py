"""Rows that others wrote: what is the question, where does the reasoning end, what is the answer.

Whatever a row's form, what is trained is ``<think>reasoning</think>`` and ``Answer: answer``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from distforge.data.answers import find_answer
from distforge.data.schema import Example, Message, read_messages, require_strategy, require_text
from distforge.data.strategies import THINKING_TOKENS
from distforge.data.verify import EXACT
from distforge.errors import InputError

_OPEN, _CLOSE = THINKING_TOKENS[:2]
# GSM8K's calculator marks, "<<48/2=24>>": notes for a tool that no model here has.
_CALCULATOR = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
# What others call questions that are not trained on.
HELDOUT_NAMES = ("heldout", "validation", "test")
# Of rows that do not say what split they are of, this share is held out.
_HELDOUT_SHARE = 0.1


def to_example(row: Mapping[str, Any], where: str, split: str) -> Example:
    """The example in a row of any form; ``split`` is that of its file, see `split_of`.

    Raises:
        InputError: no form that is known, or an empty question or answer; names ``where``.
    """
    if row.get("verifier") is not None:
        return Example.from_dict(row, where)
    context, question, told = _asked(row, where)
    question = question.removeprefix("Question:").strip()
    if row.get("reasoning") is None:
        reasoning, answer = split_told(told)
    else:
        reasoning, answer = require_text(row["reasoning"], "reasoning", where, empty=True), told
    said = "\n".join([*(message.content for message in context), question])
    return Example(
        id=f"{EXACT}-{hashlib.sha256(said.encode()).hexdigest()[:16]}",
        split=split_of(row, split) or split,
        strategy=require_strategy(row.get("strategy"), where),
        task=str(row.get("task") or EXACT),
        difficulty=1,
        question=question,
        reasoning=_as_thought(reasoning),
        answer=require_text(answer.strip(), "answer", where),
        seed=0,
        verifier=EXACT,
        context=context,
    )


def split_of(row: Mapping[str, Any], files: str | None) -> str | None:
    """ "train" or "heldout", by what the row's ``split`` says and by what its file is; None where
    neither says. Others' rows are held out where either calls them so: those are never trained on.

    Args:
        files: the split of the row's file, None where it has none.
    """
    named = row.get("split")
    if row.get("verifier") is not None:  # of our own making, so exact
        return str(named)
    if named in HELDOUT_NAMES or files == "heldout":
        return "heldout"
    return "train" if "train" in (named, files) else None


def held_out(shares: np.ndarray) -> np.ndarray:
    """Which rows are held out, by the `share_of` each: a tenth, and of two rows or more one.

    Args:
        shares: float64; infinite for rows that say their split, which are False here.
    """
    held: np.ndarray = shares < _HELDOUT_SHARE
    if np.isfinite(shares).sum() > 1 and not held.any():
        held[shares.argmin()] = True
    return held


def share_of(example: Example) -> float:
    """Where what is asked falls in [0, 1), by its hash: whoever holds out the rows below a share
    has every wording of letter case and spaces on one side."""
    said = " ".join([*(message.content for message in example.context), example.question])
    digest = hashlib.sha256(" ".join(said.casefold().split()).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def split_told(told: str) -> tuple[str, str]:
    """Reasoning and answer of what is told to a question.

    The answer stands behind the last ``Answer:`` or ``####``, in the last ``\\\\boxed{…}``, or
    behind the thought; without any of these, all of it is the answer.
    """
    found = find_answer(told)
    if found is not None:
        before, answer = found
        return _CALCULATOR.sub("", before), answer
    if _CLOSE in told:
        thought, _, answer = told.rpartition(_CLOSE)
        return f"{thought}{_CLOSE}", answer
    return "", told


def _asked(row: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], str, str]:
    """What was said before, the question, and what is told to it."""
    if row.get("messages") is not None:
        return _conversation(read_messages(row["messages"], "messages", where), where)
    if row.get("completion") is not None:
        prompt, completion = row.get("prompt"), row["completion"]
        if isinstance(prompt, str) or isinstance(completion, str) or prompt is None:
            asked = require_text(prompt, "prompt", where)
            return (), asked, require_text(completion, "completion", where)
        turns = read_messages(prompt, "prompt", where)
        return _conversation((*turns, *read_messages(completion, "completion", where)), where)
    if row.get("question") is not None:
        question = require_text(row["question"], "question", where)
        return (), question, require_text(row.get("answer"), "answer", where)
    given = ", ".join(sorted(key for key, value in row.items() if value is not None)) or "nothing"
    raise InputError(
        f"{where} has the fields {given}; expected question and answer, prompt and completion, or "
        "messages: rename them"
    )


def _conversation(turns: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], str, str]:
    """The last answer of the assistant is told, to the user's message right before it."""
    if len(turns) < 2 or (turns[-2].role, turns[-1].role) != ("user", "assistant"):
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise InputError(
            f"{where}: the user's message and the assistant's answer should come last, and the "
            f"roles are: {roles}; end the conversation there or remove the row"
        )
    return turns[:-2], turns[-2].content, turns[-1].content


def _as_thought(reasoning: str) -> str:
    """Between the thinking tokens; as it is, where it has some or is empty."""
    reasoning = reasoning.strip()
    return reasoning if not reasoning or _OPEN in reasoning else f"{_OPEN}{reasoning}{_CLOSE}"
