"""Layouts: what counts as form, and what does not."""

import pytest

from distforge.data import STRATEGIES, make_examples
from distforge.data.text import completion_text
from distforge.evaluation.adherence import layout, strategy_layout


def test_form_is_tokens_and_their_first_places():
    text = "<think><step>3+4=7<step>7*2=14<reason>so</think>\nAnswer: 14"
    assert layout(text) == ("<think>", "<step>", "<reason>", "</think>", "Answer:")
    assert layout("Answer: 14") == ("Answer:",)
    assert layout("fourteen") == ()


@pytest.mark.parametrize(
    "other",
    [
        "<think><step>1+1=2</think>\nAnswer: 2",
        "<think><reason>so<step>3+4=7</think>\nAnswer: 14",
        "<think><step>3+4=7<reason>so\nAnswer: 14",
        "<step>3+4=7<reason>so</think>\nAnswer: 14",
        "<think><step>3+4=7<reason>so</think>",
    ],
)
def test_another_form_is_told_apart(other):
    assert layout(other) != layout("<think><step>3+4=7<reason>so</think>\nAnswer: 14")


def test_content_does_not_count():
    wrong = "<think><step>3+4=9<step>1*1=1<step>2*2=5<reason>or not</think>\nAnswer: 99"
    assert layout(wrong) == layout("<think><step>3+4=7<reason>so</think>\nAnswer: 14")


def test_every_strategy_has_a_layout_that_a_bare_answer_has_not():
    for example in make_examples(140, 0):
        wanted = strategy_layout(example)
        assert wanted == layout(completion_text(example.reasoning, example.answer))
        assert wanted[0] == "<think>"
        assert wanted[-2:] == ("</think>", "Answer:")
        assert layout(completion_text("", example.answer)) != wanted
    assert {e.strategy for e in make_examples(140, 0)} == set(STRATEGIES)
