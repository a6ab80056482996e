"""A model's text as a person reads it."""

from __future__ import annotations

import pytest

from distforge.rendering.layout import Shown, lay_out, without_thoughts

WRITTEN = "<think><step>8+5=13<doubt>times first<step>5*3=15</think>\nAnswer: 19"


def test_a_thought_has_a_line_for_each_step():
    assert lay_out(WRITTEN) == (
        "<think>\n<step>8+5=13\n<doubt>times first\n<step>5*3=15\n</think>\nAnswer: 19"
    )


def test_a_thought_can_be_left_out():
    assert without_thoughts(WRITTEN) == "Answer: 19"
    assert without_thoughts("So <think>a</think>this, <think>b</think>that") == "So this, that"
    assert without_thoughts("<think>without an end") == ""


def test_other_text_is_left_alone():
    text = "1 < 2, <b>bold</b> and a <step> outside\n"
    assert lay_out(text, finished=True) == text


def test_styles_stand_around_the_thought_alone():
    laid_out = lay_out("<think>a</think> b", styles=("[dim]", "[plain]"), finished=True)
    assert laid_out == "[dim]<think>a\n</think>[plain] b"
    assert lay_out("<think>a", styles=("(", ")"), finished=True) == "(<think>a)"
    assert lay_out("<think>a</think> b", thoughts=False, styles=("(", ")"), finished=True) == "b"


@pytest.mark.parametrize("thoughts", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_what_was_shown_of_growing_text_never_has_to_be_taken_back(thoughts: bool, step: int):
    text = f"well, {WRITTEN} <b>, <th"
    pieces: list[str] = []
    shown = Shown(pieces.append)
    for end in range(0, len(text), step):
        shown.update(lay_out(text[:end], thoughts=thoughts))
    shown.update(lay_out(text, thoughts=thoughts, finished=True))
    assert "".join(pieces) == lay_out(text, thoughts=thoughts, finished=True)
