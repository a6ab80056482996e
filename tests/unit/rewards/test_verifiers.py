"""Built-in rewards, by examples."""

import pytest

from distforge.rewards.verifiers import choice, exact, math, regex, task


@pytest.mark.parametrize(
    ("text", "truth", "right"),
    [
        ("So it is 3 + 0.5.\n#### 3.50", "3.5", True),
        ("Answer: 1,000", "1000", True),
        ("She pays $18 a day.", "18", True),
        ("She pays $18 for 2.", "18", False),
        ("It is 9 * 2 = 18 dollars, so she makes $18.00.", "18", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("<think>7</think>\nIt is 8", "8", True),
        ("<think>8</think>\nI do not know", "8", False),
        ("", "8", False),
    ],
)
def test_answers_are_compared_as_mathematics(text, truth, right):
    assert math(completions=[text], expected=[truth], question=["?"]) == [float(right)]


def test_a_conversations_last_message_is_judged():
    said = [[{"role": "assistant", "content": "Answer: 4"}]]
    assert math(completions=said, expected=["4"]) == [1.0]


def test_exact_choice_and_regex():
    assert exact(["Answer: New  York", "Answer: york"], ["new york", "New York"]) == [1.0, 0.0]
    assert choice(["Answer: (B) 12", "C", "Answer: because"], ["B", "A", "B"]) == [1.0, 0.0, 0.0]
    assert regex(r"</think>\s*Answer:")(["<think>a</think>\nAnswer: 1", "Answer: 1"]) == [1.0, 0.0]


def test_a_task_computes_its_answer_from_the_question():
    from distforge.data import make_examples

    example = make_examples(70, 0)[0]
    judged = task(
        completions=[f"Answer: {example.answer}", "Answer: nothing of the kind"],
        # What the row says is not what is believed.
        expected=["wrong", "wrong"],
        question=[example.question] * 2,
        verifier=[example.verifier] * 2,
    )
    assert judged == [1.0, 0.0]
